"""Samples read segment by segment, plainly and under controls, against a loop that reads one document,
one token at a time.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memlab.evaluation import lengths, samples
from memlab.evaluation.memory import Watch, measure
from memlab.models.base import Model
from memlab.tasks.associative_retrieval import AssociativeRetrieval
from memlab.tasks.base import Batch
from memlab.tasks.copy import Copy
from tests import small

CONDITIONS = (samples.PLAIN, samples.MEMORY_OFF, samples.SHUFFLED)
LAYERED: dict[str, dict[str, Any]] = {
    "infini_delta": {},
    "transformer_xl": {"mem_len": 3},
    "memorizing": {"mem_len": 2, "memory_size": 7, "top_k": 2, "scale_init": 5.0},
}
NAMES = ["rmt", "segment", "full", *LAYERED]


def build(name: str, vocab_size: int) -> Model:
    return small.build(name, vocab_size, **LAYERED.get(name, {})).eval()


def copy(lengths: list[int] | None, **own: Any) -> Copy:
    own = {
        "length": 5,
        "symbols": 6,
        "num_segments": 3,
        "align": None,
        "batch_size": 4,
        "validation_size": 8,
        "test_size": 9,
        **own,
    }
    return Copy(segment_lengths=lengths, **own)


class Row:
    """One document, read by the definition: token by token, what was written is read again."""

    def __init__(self, model: Model, batch: Batch, row: int) -> None:
        self.model, self.answer = model, batch.answer_BT[0].tolist()
        self.tokens, self.targets = batch.tokens_BT[row].tolist(), batch.targets_BT[row].tolist()
        ends = np.cumsum(batch.segment_lengths).tolist()
        self.segments = list(zip([0, *ends], ends, strict=False))

    def run(self, begin: Any, forced: bool) -> tuple[list[int], list[Tensor], list[Any]]:
        """Predictions of the answer, their logits, and the states before each segment;
        `begin(s, own)` is what a segment begins with.
        """
        predicted, logits, states = [], [], []
        own: Any = self.model.init_state(1)
        for s, (start, end) in enumerate(self.segments):
            states.append(own)
            open = self.model.begin(begin(s, own))
            for t in range(start, end):
                written = t and self.answer[t - 1] and not forced
                token = predicted[-1] if written else self.tokens[t]
                found, open = self.model.extend(torch.tensor([[token]]), open)
                if self.answer[t]:
                    logits.append(found[0, 0])
                    predicted.append(int(found[0, 0].argmax()))
            own = self.model.close(open)
        return predicted, logits, states


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [None, [4, 8, 3], [2, 2, 2, 2, 2, 2, 2, 1], [14, 1], [15]])
@torch.no_grad()
def test_every_condition_equals_its_definition(
    name: str, cut: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # five rows: segments of 2 are read two at a time, longer ones alone
    monkeypatch.setattr(samples, "TOKENS_AT_ONCE", 21)
    task = copy(cut)
    model = build(name, task.vocab_size)
    batch = task.batch("test", 0, 5)
    found = samples.read(model, batch, CONDITIONS)
    rows = [Row(model, batch, row) for row in range(5)]
    plain = {forced: [row.run(lambda s, own: own, forced) for row in rows] for forced in (False, True)}
    for condition in CONDITIONS:
        nats = 0.0
        for at, row in enumerate(rows):
            truth = [row.targets[t] for t in range(len(row.targets)) if row.answer[t]]
            for forced, counted in ((False, found[condition].free), (True, found[condition].forced)):
                begin = {
                    samples.PLAIN: lambda s, own: own,
                    samples.MEMORY_OFF: lambda s, own: model.init_state(1),
                    samples.SHUFFLED: lambda s, own, forced=forced, at=at: plain[forced][at - 1][2][s],
                }[condition]
                predicted, logits, _ = row.run(begin, forced)
                assert counted[at] == sum(p == t for p, t in zip(predicted, truth, strict=True))
                if forced:
                    nats -= sum(
                        float(scores.log_softmax(0)[t]) for scores, t in zip(logits, truth, strict=True)
                    )
        assert found[condition].nats == pytest.approx(nats, rel=1e-9)
        assert found[condition].tokens == task.answer_tokens


def test_the_conditions_differ_where_there_is_a_memory() -> None:
    """The comparison above would be weak if all were the same."""
    task = copy(None)
    batch = task.batch("test", 0, 9)
    for name in NAMES:
        found = samples.read(build(name, task.vocab_size), batch, CONDITIONS)
        nats = [found[condition].nats for condition in CONDITIONS]
        assert (len({round(n, 9) for n in nats}) == 3) == (name != "segment"), (name, nats)


@torch.no_grad()
def test_an_encoder_answers_at_the_end() -> None:
    task = AssociativeRetrieval(
        length=3,
        num_segments=4,
        segment_lengths=None,
        align=None,
        keys=26,
        ask="value",
        queries=1,
        batch_size=4,
        validation_size=8,
        test_size=8,
    )
    model = small.build("rmt_encoder", task.vocab_size, memory_tokens=2).eval()
    batch = task.batch("test", 0, 7)
    found = samples.read(model, batch, CONDITIONS)
    tokens = torch.from_numpy(batch.tokens_BT.copy()).split(list(task.segment_lengths), dim=1)
    state = model.init_state(7)
    for segment in tokens[:-1]:
        state = model.segment(segment, state).state
    truth = torch.from_numpy(batch.targets_BT.copy())[:, -1]
    other = model.exchanged(state, torch.tensor([4, 5, 6, 0, 1, 2, 3]))
    assert torch.equal(other.tokens.memory_BMD[0], state.tokens.memory_BMD[4])
    for condition, before in zip(CONDITIONS, (state, model.init_state(7), other), strict=True):
        logits = model.segment(tokens[-1], before).logits[:, 0]
        assert (
            found[condition].free == found[condition].forced == (logits.argmax(-1) == truth).long().tolist()
        )
        assert found[condition].nats == pytest.approx(
            -logits.log_softmax(-1).gather(1, truth[:, None]).sum().item(), rel=1e-9
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("cut", [None, [1] * 15, [4, 8, 3], [2, 2, 2, 2, 2, 2, 2, 1]])
def test_the_memory_on_the_way_is_that_of_a_document_of_that_length(name: str, cut: list[int] | None) -> None:
    task = copy(cut)
    model = build(name, task.vocab_size)
    watch = Watch(model)
    samples.read(model, task.batch("test", 0, 3), watch=watch)
    count = task.num_segments
    assert [p["segments"] for p in watch.curve] == sorted(
        {1, *(2**i for i in range(9) if 2**i <= count), count}
    )
    for point in watch.curve:
        expected = measure(model, task.segment_lengths[: point["segments"]]).to_dict()
        assert {k: v for k, v in point.items() if k != "segments"} == expected


def test_figures_of_a_length_do_not_depend_on_how_it_is_cut_into_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = copy(None)
    model = build("rmt", task.vocab_size)
    whole = lengths.measure(model, task, 9, [samples.PLAIN, samples.MEMORY_OFF])
    monkeypatch.setattr(lengths, "ROWS", 2)
    parts = lengths.measure(model, task, 9, [samples.PLAIN, samples.MEMORY_OFF])
    assert (whole["batch_size"], parts["batch_size"]) == (9, 2)
    for key in (
        "accuracy",
        "exact_match",
        "accuracy_teacher_forced",
        "intervals",
        "memory",
        "memory_curve",
        "depth",
    ):
        assert whole[key] == parts[key], key
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-12)
    assert parts["controls"]["memory_off"]["loss"] == pytest.approx(
        whole["controls"]["memory_off"]["loss"], rel=1e-12
    )


def test_batches_stay_within_bounds_however_long_a_sample_is() -> None:
    model = build("full", 9)
    for segments in (1, 3, 3000):
        task = copy([5] * 3 * segments, length=5 * segments)
        for name in ("rmt", "full", "memorizing"):
            model = build(name, task.vocab_size)
            rows = lengths.rows_at_once(model, task)
            assert 1 <= rows <= lengths.ROWS and rows * task.tokens <= max(task.tokens, lengths._TOKENS)
    assert lengths.rows_at_once(build("rmt", 9), task) == lengths._TOKENS // task.tokens
    held = 2 * 2 * 2 * 4 * task.tokens * 8
    assert lengths.rows_at_once(build("full", 9), task) == min(
        lengths._TOKENS // task.tokens, lengths._BYTES // held
    )


@pytest.mark.parametrize(
    ("amount", "most", "least"),
    [(1, 5, 1), (9, 2, 1), (9, 2, 2), (3, 2, 2), (2, 1, 2), (256, 256, 2), (257, 256, 2)],
)
def test_shares_are_even(amount: int, most: int, least: int) -> None:
    parts = lengths.shares(amount, most, least)
    assert sum(parts) == amount and max(parts) - min(parts) <= 1 and min(parts) >= least
    assert max(parts) <= most or len(parts) == amount // least


def test_stretches_cover_all_segments_in_order() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        cut = generator.integers(1, 3, size=generator.integers(1, 12)).tolist()
        alone = set(
            generator.choice(len(cut), size=generator.integers(0, len(cut) + 1), replace=False).tolist()
        )
        room = int(generator.integers(0, 9))
        found = list(samples.stretches(cut, alone, room))
        assert [s for first, end in found for s in range(first, end)] == list(range(len(cut)))
        for first, end in found:
            assert end == first + 1 or (
                not alone & set(range(first, end))
                and len(set(cut[first:end])) == 1
                and sum(cut[first:end]) <= room
            )


def test_a_hopeless_answer_is_still_a_number() -> None:
    answers = samples.Answers(2, [0, 0], [0, 0], nats=4 * math.log(9))
    figures = answers.figures()
    assert figures["accuracy"] == 0 and figures["loss"] == pytest.approx(math.log(9))
    assert figures["intervals"]["accuracy"][0] == 0 < figures["intervals"]["accuracy"][1] < 1
