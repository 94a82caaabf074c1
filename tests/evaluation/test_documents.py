"""Text: losses of all documents, by position and under controls, against reading each document alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import torch.nn.functional as F

from memlab.evaluation import documents, streaming
from memlab.evaluation.samples import MEMORY_OFF, PLAIN, SHUFFLED
from memlab.models.base import Model
from memlab.tasks.text import TextTask
from tests import small

SEGMENT = 6


def text(place: Path, test: list[int], **own: Any) -> TextTask:
    """Documents of so many bytes."""
    generator = np.random.default_rng(0)
    for split, sizes in (("train", [30]), ("validation", [30]), ("test", test)):
        (place / split).mkdir(parents=True, exist_ok=True)
        for i, size in enumerate(sizes):
            (place / split / f"{i}.txt").write_bytes(bytes(generator.integers(97, 123, size=size).tolist()))
    options: dict[str, Any] = {
        "data_dir": str(place),
        "source": None,
        "source_folder": None,
        "text_column": "text",
        "tokenizer": "bytes",
    }
    options |= {
        "bpe_size": 300,
        "cache_dir": str(place),
        "segment_length": SEGMENT,
        "num_segments": 4,
        "batch_size": 3,
        "workers": 0,
    }
    options |= {
        "validation_documents": None,
        "test_documents": None,
        "validation_bytes": None,
        "test_bytes": None,
    }
    task = TextTask(**{**options, **own})
    task.prepare()
    return task


def models(vocab_size: int) -> dict[str, Model]:
    xl = small.build("transformer_xl", vocab_size, mem_len=4)
    return {"rmt": small.build("rmt", vocab_size).eval(), "transformer_xl": xl.eval()}


def alone(model: Model, task: TextTask, ids: Any, off: bool) -> np.ndarray[Any, Any]:
    """Nats of each token of a document."""
    ids = ids.astype(np.int64)
    read, nats = np.concatenate([[task.begin], ids[:-1]]), []
    state = model.init_state(1)
    for start in range(0, len(ids), SEGMENT):
        output = model.segment(
            torch.from_numpy(read[start : start + SEGMENT])[None], model.init_state(1) if off else state
        )
        nats.append(
            F.cross_entropy(
                output.logits[0], torch.from_numpy(ids[start : start + SEGMENT]), reduction="none"
            ).numpy()
        )
        state = output.state
    return np.concatenate(nats)


@pytest.mark.parametrize("name", ["rmt", "transformer_xl"])
@torch.no_grad()
def test_every_document_is_as_if_it_were_alone(name: str, tmp_path: Path) -> None:
    task = text(tmp_path, [50, 7, 31, 6, 90])
    model = models(task.vocab_size)[name]
    found = documents.measure(model, task, [PLAIN, MEMORY_OFF, SHUFFLED])
    for off, part in ((False, found), (True, found["controls"]["memory_off"])):
        each = [alone(model, task, ids, off) for ids in task.test_documents()]
        assert part["loss"] == pytest.approx(np.concatenate(each).mean(), rel=1e-9)
        for r in part["by_position"]:
            end = 2 * r["from"] or SEGMENT
            inside = np.concatenate([nats[r["from"] : end] for nats in each])
            assert (r["tokens"], r["loss"]) == (len(inside), pytest.approx(inside.mean(), rel=1e-9))
    assert found["tokens"] == 184 and found["documents_read"] == 5
    low, high = found["intervals"]["loss"]
    assert low < found["loss"] < high
    assert (
        found["intervals"]["bits_per_byte"][0]
        < found["bits_per_byte"]
        < found["intervals"]["bits_per_byte"][1]
    )


@torch.no_grad()
def test_what_a_tokenizer_loses_counts_under_every_condition(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(
        tokenizers.models.BPE({letter: i for i, letter in enumerate("abcdefghij")}, [])
    )
    made.decoder = tokenizers.decoders.Fuse()
    made.save(str(tmp_path / "made.json"))
    task = text(tmp_path, [50, 31, 90], tokenizer=str(tmp_path / "made.json"))
    amounts = task.amounts("test")
    found = documents.measure(models(task.vocab_size)["rmt"], task, [PLAIN, MEMORY_OFF])
    assert amounts.bytes == 171 and found["lost_bytes"] == amounts.lost_bytes == 171 - amounts.tokens > 80
    for part in (found, found["controls"]["memory_off"]):
        bits = part["loss"] * amounts.tokens / math.log(2) + amounts.patch_bits
        assert part["bits_per_byte"] == pytest.approx(bits / 171, rel=1e-9)
    low, high = found["intervals"]["bits_per_byte"]
    assert low < found["bits_per_byte"] < high


@torch.no_grad()
def test_shuffled_reads_on_from_the_other_document(tmp_path: Path) -> None:
    """Two rows, one document each, of which the second ends first: from there on there is no other."""
    task = text(tmp_path, [40, 20], batch_size=2)
    model = models(task.vocab_size)["rmt"]
    found = documents.measure(model, task, [PLAIN, SHUFFLED])["controls"]["shuffled"]
    first, second = (ids.astype(np.int64) for ids in task.test_documents())
    nats: list[float] = []
    states: list[list[Any]] = []
    segments = []
    for ids in (first, second):
        padded = np.concatenate([[task.begin], ids[:-1], np.full(-len(ids) % SEGMENT, task.begin)])
        segments.append(torch.from_numpy(padded).split(SEGMENT))
        states.append([model.init_state(1)])
        for segment in segments[-1]:
            states[-1].append(model.segment(segment[None], states[-1][-1]).state)
    for s in range(4):  # 20 bytes are four segments
        for own, other, ids in ((0, 1, first), (1, 0, second)):
            target = torch.from_numpy(ids[s * SEGMENT : (s + 1) * SEGMENT])
            logits = model.segment(segments[own][s][None], states[other][s]).logits[0, : len(target)]
            nats += F.cross_entropy(logits, target, reduction="none").tolist()
    assert found["tokens"] == len(nats) == 44
    assert found["loss"] == pytest.approx(np.mean(nats), rel=1e-9)


def test_one_document_has_no_other_and_no_interval(tmp_path: Path) -> None:
    task = text(tmp_path, [40])
    found = documents.measure(models(task.vocab_size)["rmt"], task, [PLAIN, SHUFFLED])
    assert found["controls"]["shuffled"] == {
        "tokens": 0,
        "loss": None,
        "bits_per_byte": None,
        "by_position": [],
    }
    assert found["intervals"] == {"loss": None, "bits_per_byte": None}


@torch.no_grad()
def test_a_stream_reads_the_documents_on_and_on_without_a_reset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "FIRST", 24)
    task = text(tmp_path, [25, 40])
    model = models(task.vocab_size)["rmt"]
    found = streaming.stream(model, task, 150)
    ids = np.concatenate([ids.astype(np.int64) for ids in task.test_documents()])
    ids = np.tile(ids, 3)[:150]
    read, state, nats = np.concatenate([[task.begin], ids[:-1]]), model.init_state(1), []
    for start in range(0, 150, SEGMENT):
        output = model.segment(torch.from_numpy(read[start : start + SEGMENT])[None], state)
        state = output.state
        nats.append(
            F.cross_entropy(
                output.logits[0].float(), torch.from_numpy(ids[start : start + SEGMENT]), reduction="none"
            )
        )
    whole = torch.cat(nats)
    assert [(r["from"], r["tokens"]) for r in found["by_position"]] == [
        (0, 6),
        (6, 6),
        (12, 12),
        (24, 24),
        (48, 48),
        (96, 54),
    ]
    for r in found["by_position"]:
        assert r["loss"] == pytest.approx(whole[r["from"] : r["from"] + r["tokens"]].mean().item(), rel=1e-6)
    assert [p["tokens"] for p in found["points"]] == [24, 48, 96, 150]
    assert found["at_32k"] == found["points"][0] and found["at_end"] == found["points"][-1]
    assert {p["state_bytes"] for p in found["points"]} == {model.init_state(1).nbytes}
