"""Training and evaluation on text against each document read by itself, from its first token to its last."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor

from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.errors import ConfigError
from memlab.models.base import Model
from memlab.training.build import Parts, build
from memlab.training.callbacks import place
from memlab.training.data import ReadingBatch
from memlab.training.module import TrainingModule
from memlab.training.text import TextEvaluator, TextObjective

N, S = 8, 3  # tokens in a segment, segments in a step
MODELS = [
    "transformer",
    "memory_transformer",
    "transformer_xl",
    "rmt",
    "rmt_xl",
    "infini",
    "infini_delta",
    "memorizing",
]
# Shorter than a segment, one segment, one step, more; not in the order of their lengths.
TEXTS = [
    "abc",
    "d" * N,
    "The quick brown fox jumps",
    "x" * (S * N),
    "ümlaute und mehr, " * 4,
    "y" * 50,
    "last one",
]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        for index, text in enumerate(TEXTS):
            (tmp_path / split / f"{index}.txt").write_text(f"{text} {split}", encoding="utf-8")
    return tmp_path


def config(corpus: Path, model: str, *more: str) -> Config:
    sizes = [
        "model.layers=2",
        "model.width=16",
        "model.heads=2",
        f"task.segment_length={N}",
        f"task.num_segments={S}",
        "task.batch_size=3",
    ]
    words = [
        f"model={model}",
        "task=text",
        f"task.data_dir={corpus}",
        "trainer.precision=64-true",
        *sizes,
        *more,
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check(compose("train", words))


def parts_of(corpus: Path, model: str, *more: str) -> tuple[Parts, TrainingModule]:
    parts = build(config(corpus, model, *more))
    parts.module.double()
    return parts, parts.module


def objective(module: TrainingModule) -> TextObjective:
    assert isinstance(module.objective, TextObjective)
    return module.objective


def alone(model: Model, document: bytes) -> Tensor:
    """Nats of each byte of a document that is read by itself, segment by segment, without a batch."""
    begin, nats, state = 256, [], model.init_state(1)
    for start in range(0, len(document), N):
        targets = list(document[start : start + N])
        tokens = [begin if start == 0 else document[start - 1], *targets[:-1]]
        output = model.segment(torch.tensor([tokens]), state)
        nats.append(F.cross_entropy(output.logits[0], torch.tensor(targets), reduction="none"))
        state = output.state
    return torch.cat(nats)


@pytest.mark.parametrize("model", MODELS)
def test_evaluation_is_each_document_by_itself(corpus: Path, model: str) -> None:
    parts, module = parts_of(corpus, model)
    module.eval()
    with torch.no_grad():
        module.on_test_epoch_start()
        for batch in parts.test:
            assert isinstance(batch, ReadingBatch)
            module.test_step(batch, 0)
        metrics = module.evaluator.finish()
        documents = [f"{text} test".encode() for text in TEXTS]
        nats_by_document = [alone(parts.model, document) for document in documents]
    nats = math.fsum(float(n.sum()) for n in nats_by_document)
    count = sum(map(len, documents))
    words = sum(len(document.decode().split()) for document in documents)
    assert metrics["loss"] == pytest.approx(nats / count, rel=1e-6)  # as it is in double precision
    assert metrics["bits_per_byte"] == pytest.approx(nats / math.log(2) / count, rel=1e-6)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-4)
    bits = nats / math.log(2)
    assert metrics["bits_per_word"] == pytest.approx(bits / words, rel=1e-6)
    evaluator = module.evaluator
    assert isinstance(evaluator, TextEvaluator)
    first = evaluator.by_position[0]
    assert first["tokens"] == sum(min(N, len(document)) for document in documents)
    assert first["loss"] == pytest.approx(
        float(torch.cat([n[:N] for n in nats_by_document]).mean()), rel=1e-6
    )


@pytest.mark.parametrize("model", MODELS)
def test_training_reads_each_row_on_from_step_to_step(corpus: Path, model: str) -> None:
    """Without an optimizer's steps, the losses of the training steps are those of the documents read one
    by one.
    """
    parts, module = parts_of(corpus, model)
    parts.model.eval()
    batches = [batch for batch, _ in zip(parts.stream, range(9), strict=False)]
    losses = [float(module.training_step(batch, 0).detach()) * batch.counted for batch in batches]  # type: ignore[arg-type,union-attr]
    expected = 0.0
    for row in range(3):
        document = bytearray()
        ended: list[bytes] = []
        for batch in batches:
            assert isinstance(batch, ReadingBatch)
            for s in range(S):
                part = slice(s * N, (s + 1) * N)
                if batch.begins_BS[row, s]:
                    ended.append(bytes(document))
                    document = bytearray()
                document += bytes(batch.targets_BT[row, part][batch.counts_BT[row, part]].tolist())
        with torch.no_grad():
            expected += sum(
                float(alone(parts.model, text).sum()) for text in [*ended, bytes(document)] if text
            )
    assert sum(losses) == pytest.approx(expected, rel=1e-6)
    assert module.stream.position == batches[-1].position  # type: ignore[union-attr]


def test_no_gradient_between_steps_and_all_within(corpus: Path) -> None:
    """A step's loss reaches the memory's writing in this step (its first segment too),
    and nothing of the step before.
    """
    parts, module = parts_of(corpus, "rmt")
    batches = iter(parts.stream)
    module.training_step(next(batches), 0)  # type: ignore[arg-type]
    before = objective(module).carried
    assert before is not None and not any(tensor.requires_grad for tensor in before.tensors())
    leaf = before.map(lambda tensor: tensor.clone().requires_grad_())
    objective(module).carried = leaf
    module.training_step(next(batches), 0).backward()  # type: ignore[arg-type]
    assert leaf.tokens.memory_BMD.grad.abs().max() > 0


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_depth_changes_no_number(corpus: Path, depth: int) -> None:
    losses: list[list[float]] = []
    for words in ([], [f"model.bptt_depth={depth}"]):
        parts, module = parts_of(corpus, "rmt", *words)
        losses.append(
            [float(module.training_step(b, 0).detach()) for b, _ in zip(parts.stream, range(6), strict=False)]
        )  # type: ignore[arg-type]
    assert losses[0] == pytest.approx(losses[1], rel=1e-9)


@pytest.mark.parametrize(
    ("model", "words", "said"),
    [
        ("rmt_encoder", [], ["rmt_encoder", "decoder"]),
        ("transformer", ["model.context=full"], ["keeps every token", "transformer_xl"]),
    ],
)
def test_models_that_cannot_read_on(corpus: Path, model: str, words: list[str], said: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        build(config(corpus, model, *words))
    assert all(word in str(error.value) for word in said)


def test_carried_state_is_in_the_checkpoint(corpus: Path, tmp_path: Path) -> None:
    """A module that takes it up goes on as the one that left it."""
    parts, module = parts_of(corpus, "infini_delta")
    batches = iter(parts.stream)
    for _ in range(4):
        module.training_step(next(batches), 0)  # type: ignore[arg-type]
    saved: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "saved.ckpt")
    again, other = parts_of(corpus, "infini_delta")
    other.on_load_checkpoint(torch.load(tmp_path / "saved.ckpt", weights_only=True))
    for one, two, _ in zip(batches, again.stream, range(5), strict=False):
        assert torch.equal(one.tokens_BT, two.tokens_BT)
        assert torch.equal(module.training_step(one, 0), other.training_step(two, 0))  # type: ignore[arg-type]
    assert objective(module).tokens == objective(other).tokens > 0


def test_a_growing_number_of_segments_reads_the_same_documents(corpus: Path) -> None:
    """Joined, batches of 1, 2 and 3 segments are the batches of one segment,
    and the training is that of the same cuts.
    """
    more = ["curriculum=grow", "curriculum.stage_steps=2"]
    parts, module = parts_of(corpus, "rmt", *more)
    batches, stream = [], iter(parts.stream)
    for step in range(6):
        batch = next(stream)
        assert isinstance(batch, ReadingBatch)
        module.training_step(batch, step)
        batches.append(batch)
        module.stream.curriculum.update(step + 1, None)
    assert [len(batch.segment_lengths) for batch in batches] == [1, 1, 2, 2, 3, 3]
    assert [batch.begins_BS.shape[1] for batch in batches] == [1, 1, 2, 2, 3, 3]
    single, _ = parts_of(corpus, "rmt", "task.num_segments=1")
    ones = [one for one, _ in zip(single.stream, range(12), strict=False)]
    for name in ("tokens_BT", "targets_BT", "counts_BT", "begins_BS", "offset_BS"):
        assert torch.equal(
            torch.cat([getattr(b, name) for b in batches], 1), torch.cat([getattr(b, name) for b in ones], 1)
        ), name
    assert batches[-1].position == ones[-1].position and module.stream.position == ones[-1].position
    assert place(module) == f"stage 3/3 (3 segments), {objective(module).tokens:,} tokens"
    assert module.progress["curriculum/segments"] == 3


def test_recomputed_segments_train_text_alike(corpus: Path) -> None:
    """Two steps with documents that begin within them: loss, metrics, gradients and what is carried."""
    found = []
    for recompute in ("none", "segment", "block"):
        parts, module = parts_of(corpus, "rmt", f"trainer.recompute={recompute}")
        losses = [module.training_step(batch, 0) for batch, _ in zip(parts.stream, range(2), strict=False)]
        sum(losses).backward()  # type: ignore[union-attr]
        carried = objective(module).carried
        assert carried is not None
        found.append([*losses, *(p.grad for p in module.model.parameters()), *carried.tensors()])
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-11, atol=1e-12)
