"""Answers to samples that are read segment by segment, holding the activations of one segment at a time.

In addition to the plain reading, two controls show what the memory contributes. Both only use the state, by
`Model.init_state` and `Model.exchanged`, so they exist for every model. They read only the segments with
answers, a second time:

    memory_off   such a segment begins with the initial state, without information about earlier segments
    shuffled     it begins with the state of another document of the batch at this boundary, as that
                 document's own reading left it: an ordinary memory, without information about this document.
                 The documents are exchanged in a ring; if neighbours share their content (such as samples of
                 associative_retrieval that ask for different keys of the same pairs), with one of another
                 group

Since the exchanged states are those of the plain reading, a document never gets its own past by way of
others.

Legend: B samples of a batch, n tokens of a segment, A answer tokens of a sample, V vocabulary.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.evaluation.accuracy import read_on
from memlab.evaluation.intervals import grouped_share
from memlab.evaluation.memory import Watch
from memlab.models.base import NOTHING, Model, others
from memlab.tasks.base import Batch

PLAIN, MEMORY_OFF, SHUFFLED = "plain", "memory_off", "shuffled"
TOKENS_AT_ONCE = 16_384  # maximum of tokens that one call of a model reads


@dataclass
class Answers:
    """How many of its `tokens` each sample has right, free-running and teacher-forced, and their nats."""

    tokens: int
    free: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    nats: float = 0.0
    members: int = 1  # neighbours that share their content

    def add(self, other: Answers) -> None:
        """Add the answers of further samples."""
        self.free += other.free
        self.forced += other.forced
        self.nats += other.nats

    def figures(self) -> dict[str, Any]:
        """The metrics of `memlab.train`'s test, with 95 % confidence intervals."""
        samples, whole = len(self.free), sum(right == self.tokens for right in self.free)
        return {
            "accuracy": sum(self.free) / (samples * self.tokens),
            "exact_match": whole / samples,
            "accuracy_teacher_forced": sum(self.forced) / (samples * self.tokens),
            "loss": self.nats / (samples * self.tokens),
            "intervals": {
                "accuracy": grouped_share(self.free, self.tokens, self.members),
                "exact_match": grouped_share([right == self.tokens for right in self.free], 1, self.members),
                "accuracy_teacher_forced": grouped_share(self.forced, self.tokens, self.members),
            },
        }


@torch.inference_mode()
def read(
    model: Model,
    batch: Batch,
    conditions: Sequence[str] = (PLAIN,),
    watch: Watch | None = None,
    tick: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Answers]:
    """Read the samples of a batch, plainly and under controls.

    Args:
        conditions: `plain`, which comes first, and any of `memory_off` and `shuffled`; the latter needs
            samples of two groups.
        watch: receives the states on the way, to measure them.
        tick: called with the number of tokens just read.

    Returns:
        By condition.
    """
    reader = (_Answering if model.answers_once else _Generating)(model, batch, conditions)
    marked = {s for s in range(reader.segments) if reader.asks(s)} | (
        set() if watch is None else set(watch.points(batch.segment_lengths))
    )
    single = model.keeps_everything  # its attention over everything is large enough with one segment
    for first, end in stretches(
        batch.segment_lengths, marked, 1 if single else TOKENS_AT_ONCE // len(batch.tokens_BT)
    ):
        tokens_BSn = torch.stack([reader.tokens(s) for s in range(first, end)], dim=1)
        if watch is not None and first in marked:
            watch.see(tokens_BSn[:, 0], reader.state, first)
        if first in marked:
            reader.segment(first)
        else:
            reader.state = model(tokens_BSn, reader.state, NOTHING).state
        if watch is not None and first in marked:
            watch.seen(reader.state, first)
        tick(tokens_BSn.numel())
    return reader.answers


def stretches(segment_lengths: Sequence[int], alone: set[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Segments first .. end - 1 that are read in one call.

    Several segments have the same length and at most `tokens` tokens; those of `alone` are read alone.
    """
    first, count = 0, len(segment_lengths)
    while first < count:
        end = first + 1
        while (
            first not in alone
            and end < count
            and end not in alone
            and segment_lengths[end] == segment_lengths[first]
            and (end + 1 - first) * segment_lengths[first] <= tokens
        ):
            end += 1
        yield first, end
        first = end


class _Reader(abc.ABC):
    """A batch, and the states after what has been read of it."""

    def __init__(self, model: Any, batch: Batch, conditions: Sequence[str]) -> None:
        self.model, self.batch = model, batch
        self.rows, self.segments = len(batch.tokens_BT), len(batch.segment_lengths)
        if SHUFFLED in conditions and self.rows < 2 * batch.members:
            raise ValueError("shuffled needs samples of two groups")
        self.answer_T = batch.answer_BT[0]  # the same positions in every sample of a task
        self.starts = [0, *itertools.accumulate(batch.segment_lengths)]
        self.others_B = others(self.rows, batch.members).to(model.device)
        self.initial = model.init_state(self.rows)
        self.state = self.initial
        self.answers = {
            name: Answers(int(self.answer_T.sum()), [0] * self.rows, [0] * self.rows) for name in conditions
        }

    @abc.abstractmethod
    def asks(self, segment: int) -> bool:
        """Whether the segment has to be read by `segment`."""

    @abc.abstractmethod
    def segment(self, segment: int) -> None:
        """Read it, under all conditions."""

    def tokens(self, segment: int) -> Tensor:
        return self._tensor(self.batch.tokens_BT[:, self.starts[segment] : self.starts[segment + 1]])

    def before(self, name: str, state: Any) -> Any:
        """The state that a segment begins with under a condition, given that of the plain reading."""
        if name == MEMORY_OFF:
            return self.initial
        return self.model.exchanged(state, self.others_B) if name == SHUFFLED else state

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.model.device)

    def _forced(self, name: str, logits_BAV: Tensor, truth_BA: Tensor) -> None:
        answers = self.answers[name]
        exact = logits_BAV.to(torch.promote_types(logits_BAV.dtype, torch.float32))
        answers.nats += F.cross_entropy(exact.flatten(0, 1), truth_BA.flatten(), reduction="sum").item()
        answers.forced = _plus(answers.forced, logits_BAV.argmax(-1) == truth_BA)


class _Answering(_Reader):
    """For a model that answers once, at the end of a sample: free-running and teacher-forced are the same."""

    def asks(self, segment: int) -> bool:
        return segment == self.segments - 1

    def segment(self, segment: int) -> None:
        tokens_Bn = self.tokens(segment)
        after = None
        for name, answers in self.answers.items():
            output = self.model.segment(tokens_Bn, self.before(name, self.state))
            after = output.state if after is None else after  # the plain one comes first
            if self.asks(segment):
                self._forced(
                    name, output.logits[:, -1:], self._tensor(self.batch.targets_BT[:, self.answer_T])
                )
                answers.free = answers.forced
            else:
                break
        self.state = after


class _Generating(_Reader):
    """For a model that generates its answer: from the true tokens before each one, and from its own."""

    def __init__(self, model: Any, batch: Batch, conditions: Sequence[str]) -> None:
        super().__init__(model, batch, conditions)
        self.first = next(s for s in range(self.segments) if self._answer_of(s).any())
        self.last = max(s for s in range(self.segments) if self._answer_of(s).any())
        self.free: Any = None  # the state where the model reads what it has generated itself
        # the prediction that the next segment begins with, if its first token is an answer
        self.predicted: dict[str, Tensor | None] = dict.fromkeys(self.answers)

    def _answer_of(self, segment: int) -> Any:
        return self.answer_T[self.starts[segment] : self.starts[segment + 1]]

    def asks(self, segment: int) -> bool:
        return self.first <= segment <= self.last

    def segment(self, segment: int) -> None:
        tokens_Bn, answer_n = self.tokens(segment), self._answer_of(segment)
        state, free = self.state, self.state if self.free is None else self.free
        scored = self._tensor(answer_n) if answer_n.any() else NOTHING
        output = self.model.segment(tokens_Bn, state, scored)
        self.state = output.state
        if not self.asks(segment):
            return
        truth_BA = self._tensor(
            self.batch.targets_BT[:, self.starts[segment] : self.starts[segment + 1]][:, answer_n]
        )
        last_answer = int(answer_n.nonzero()[0][-1]) + 1 if answer_n.any() else 0
        for name, answers in self.answers.items():
            ends = segment == self.last or name != PLAIN  # nothing after the last answer matters
            end = last_answer if ends else len(answer_n)
            if answer_n.any():
                logits_BAV = (
                    output.logits
                    if name == PLAIN
                    else self.model.segment(tokens_Bn, self.before(name, state), scored).logits
                )
                self._forced(name, logits_BAV, truth_BA)
            last_B = self.predicted[name]
            self.predicted[name] = None
            if not end:
                continue
            open = self.model.begin(self.before(name, free))
            predicted, open = read_on(self.model, tokens_Bn[:, :end], answer_n[:end].tolist(), open, last_B)
            if predicted:
                answers.free = _plus(answers.free, torch.stack(predicted, dim=1) == truth_BA)
            if answer_n[-1]:
                self.predicted[name] = predicted[-1]
            if not ends:
                self.free = self.model.close(open)


def _plus(counts: list[int], right_BA: Tensor) -> list[int]:
    return [count + more for count, more in zip(counts, right_BA.sum(1).tolist(), strict=True)]
