"""Samples with an answer, read segment by segment: activations of one segment are held, however many
thousands there are.

Beside the plain reading, two controls say what the memory is worth. Both are made of the state alone, by
`Model.init_state` and `Model.exchanged`, so they exist for every model. Both read only the segments with
answers a second time:

    memory_off   such a segment begins with the initial state: nothing of an earlier one is known
    shuffled     it begins with the state that another document of the batch has at this boundary, as that
                 one's own reading left it; the memory is of the usual kind and knows nothing of the document.
                 The documents are exchanged in a ring, and where neighbours share their content (as the
                 samples of associative_retrieval that ask for different keys of the same pairs do), with one
                 of another group

Since the exchanged states are those of the plain reading, a document never comes to know its own past by way
of others.

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
from memlab.models.base import Model, others
from memlab.tasks.base import Batch

PLAIN, MEMORY_OFF, SHUFFLED = "plain", "memory_off", "shuffled"
TOKENS_AT_ONCE = 16_384  # of a batch that one call of a model reads


@dataclass
class Answers:
    """What was right, sample by sample: free-running and teacher-forced tokens of `tokens` that each
    sample has, and the nats of all.
    """

    tokens: int
    free: list[int] = field(default_factory=list)
    forced: list[int] = field(default_factory=list)
    nats: float = 0.0
    members: int = 1  # neighbours that share their content

    def add(self, other: Answers) -> None:
        """Those of further samples."""
        self.free += other.free
        self.forced += other.forced
        self.nats += other.nats

    def figures(self) -> dict[str, Any]:
        """The metrics of `memlab.train`'s test, and their 95 % confidence intervals."""
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
        conditions: `plain`, which comes first, and of `memory_off` and `shuffled` those wanted; the latter
            needs two samples.
        watch: told of the states on the way, to weigh them.
        tick: told how many tokens have been read.

    Returns:
        By condition.
    """
    reader = (_Answering if model.answers_once else _Generating)(model, batch, conditions)
    marked = {s for s in range(reader.segments) if reader.asks(s)} | (
        set() if watch is None else set(watch.points(batch.segment_lengths))
    )
    single = model.keeps_everything  # its attention over all that was read is large enough for one segment
    for first, end in stretches(
        batch.segment_lengths, marked, 1 if single else TOKENS_AT_ONCE // len(batch.tokens_BT)
    ):
        tokens_BSn = torch.stack([reader.tokens(s) for s in range(first, end)], dim=1)
        if watch is not None and first in marked:
            watch.see(tokens_BSn[:, 0], reader.state, first)
        if first in marked:
            reader.segment(first)
        else:
            reader.state = model(tokens_BSn, reader.state).state
        if watch is not None and first in marked:
            watch.seen(reader.state, first)
        tick(tokens_BSn.numel())
    return reader.answers


def stretches(segment_lengths: Sequence[int], alone: set[int], tokens: int) -> Iterator[tuple[int, int]]:
    """Segments first .. end - 1 that are read in one call: of one length,
    `tokens` at most if they are several, those of `alone` alone.
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
    """A batch, and the states behind what has been read of it."""

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
        """The state that a segment begins with under a condition, when it is `state` by plain reading."""
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
    """By a model that answers once, at the end of the sample: free-running and teacher-forced are the
    same.
    """

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
    """By a model that writes its answer: once with the true tokens before each, once on its own."""

    def __init__(self, model: Any, batch: Batch, conditions: Sequence[str]) -> None:
        super().__init__(model, batch, conditions)
        self.first = next(s for s in range(self.segments) if self._asked(s).any())
        self.last = max(s for s in range(self.segments) if self._asked(s).any())
        self.free: Any = None  # the state where the model reads what it has written itself
        # what the next segment begins with, if that is an answer
        self.written: dict[str, Tensor | None] = dict.fromkeys(self.answers)

    def _asked(self, segment: int) -> Any:
        return self.answer_T[self.starts[segment] : self.starts[segment + 1]]

    def asks(self, segment: int) -> bool:
        return self.first <= segment <= self.last

    def segment(self, segment: int) -> None:
        tokens_Bn, asked = self.tokens(segment), self._asked(segment)
        state, free = self.state, self.state if self.free is None else self.free
        output = self.model.segment(tokens_Bn, state)
        self.state = output.state
        if not self.asks(segment):
            return
        truth_BA = self._tensor(
            self.batch.targets_BT[:, self.starts[segment] : self.starts[segment + 1]][:, asked]
        )
        last_asked = int(asked.nonzero()[0][-1]) + 1 if asked.any() else 0
        for name, answers in self.answers.items():
            ends = segment == self.last or name != PLAIN  # nothing behind the last answer matters
            end = last_asked if ends else len(asked)
            if asked.any():
                logits = (
                    output.logits
                    if name == PLAIN
                    else self.model.segment(tokens_Bn, self.before(name, state)).logits
                )
                self._forced(name, logits[:, self._tensor(asked)], truth_BA)
            written = self.written[name]
            self.written[name] = None
            if not end:
                continue
            open = self.model.begin(self.before(name, free))
            predicted, open = read_on(self.model, tokens_Bn[:, :end], asked[:end].tolist(), open, written)
            if predicted:
                answers.free = _plus(answers.free, torch.stack(predicted, dim=1) == truth_BA)
            if asked[-1]:
                self.written[name] = predicted[-1]
            if not ends:
                self.free = self.model.close(open)


def _plus(counts: list[int], right_BA: Tensor) -> list[int]:
    return [count + more for count, more in zip(counts, right_BA.sum(1).tolist(), strict=True)]
