"""The contract of every task: batches of token sequences, cut into segments, and which of the targets count.

Synthetic samples are generated on the fly from (seed, split, index) alone, see `draws.py`.

Shapes: B batch, T tokens in a sample, W random numbers per sample. This file and the tasks import no torch.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray

from memlab import ram
from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.splits import Split
from memlab.tasks.cutting import in_parts, share
from memlab.tasks.draws import Ints, RandomNumbers, draw

_FEWEST = 200  # different samples that a task must have, so that each split has enough of its own


@dataclass(frozen=True)
class Batch:
    """Some samples of one shape.

    Attributes:
        tokens_BT: what the model reads.
        targets_BT: the next token at each position.
        answer_BT: True where the target counts in loss and accuracy.
        segment_lengths: lengths of the segments that the T tokens are cut into.
        members: how many neighbours share their content, see `Task.members`.
        depth_B: where the fact in question stands, from 0 (earliest place) to 1 (latest); None = the task
            does not note it.
    """

    tokens_BT: Ints
    targets_BT: Ints
    answer_BT: NDArray[np.bool_]
    segment_lengths: tuple[int, ...]
    members: int = 1
    depth_B: NDArray[np.float64] | None = None


class Task(abc.ABC):
    """Base of all tasks: what a model reads, cut into segments.

    Attributes:
        vocab_size: V, the number of token ids; known once the task is prepared.
        batch_size: batch rows in a training step, over all processes.
        segment_lengths: lengths of the segments that a batch row's tokens in a step are cut into.
        trained_by: what makes the objective, evaluator and stream of its training: `answers`, `text`, or the
            dotted name of a function like `memlab.training.answers.training`.
        stage_threshold: default of the validation accuracy at which a curriculum moves to its next stage;
            None = no threshold, only the number of steps decides.
    """

    vocab_size: int
    batch_size: int
    segment_lengths: tuple[int, ...]
    trained_by: ClassVar[str] = "answers"
    stage_threshold: float | None = None

    @property
    def num_segments(self) -> int:
        return len(self.segment_lengths)

    @property
    def members(self) -> int:
        """How many consecutive samples share random numbers, and so the split and part of the content."""
        return 1

    def typical_segments(self) -> tuple[int, ...]:
        """Segments of one document, after which the size of the memory is measured."""
        return self.segment_lengths

    def data(self) -> dict[str, Any]:
        """The files that a prepared task reads, for `memlab.tracking.data_record`: `files`, their
        fingerprints by name; `revision`, of a dataset on the hub, or None; and `tokenizer`, a hash of it, or
        None. {} = it makes its samples itself.
        """
        return {}

    def prepare(self) -> None:  # noqa: B027 - most tasks need nothing
        """Do what may take long or fail. Called once, before anything of a run is written.

        Raises:
            UserError: something that the task needs is missing.
        """


class SyntheticTask(Task):
    """Base of the generated sequence tasks.

    A subclass defines how long a sample is, and makes it from random numbers.

    Args:
        length: the task's own measure of a sample (symbols, pairs).
        num_segments: S; a sample is cut into S equal segments.
        segment_lengths: explicit lengths instead of equal ones (then their number is S), or None.
        align: where the shorter segment stands if they cannot be equal: last (left-aligned) or first
            (right-aligned, as in the RMT encoder's code); None = they have to be equal.
        batch_size: samples in a training step, over all processes.
        validation_size, test_size: samples in these splits, the same for every seed.

    Raises:
        ConfigError: a sample cannot be cut into these segments.
    """

    chance: float  # accuracy of guessing among the possible symbols
    stage_threshold = 0.99
    lengths_in: ClassVar[Literal["segments", "tokens"]] = "segments"  # what `lengths` of an evaluation count
    whole_answers: ClassVar[bool] = False  # whether a table by depth counts whole answers, not their tokens

    def __init__(
        self,
        length: Positive,
        num_segments: Positive,
        segment_lengths: list[Positive] | None,
        align: Literal["left", "right"] | None,
        batch_size: Positive,
        validation_size: Positive,
        test_size: Positive,
    ) -> None:
        self.length = length
        ram.check_batch(batch_size, self.tokens)
        self.align = align
        self.batch_size = batch_size
        self.validation_size, self.test_size = validation_size, test_size
        self.wished_segments = num_segments
        self.segment_lengths = self._cut(num_segments, segment_lengths)
        if self.distinct < _FEWEST:
            raise ConfigError(
                f"task.length={length} makes only {self.distinct} different samples; at least {_FEWEST} are "
                "needed to keep train, validation and test apart"
            )

    @property
    def tokens(self) -> int:
        """T, the tokens that a model reads of one sample."""
        return self.tokens_for(self.length)

    @property
    @abc.abstractmethod
    def answer_tokens(self) -> int:
        """How many of the targets are the answer."""

    def answer_positions(self) -> list[int]:
        """Which of the T targets are the answer: by default the last."""
        return list(range(self.tokens - self.answer_tokens, self.tokens))

    @property
    @abc.abstractmethod
    def distinct(self) -> int:
        """How many different samples there are."""

    @property
    @abc.abstractmethod
    def random_numbers(self) -> int:
        """W, how many random 64-bit numbers one sample is made of."""

    @abc.abstractmethod
    def tokens_for(self, length: int) -> int:
        """T of a sample of this length."""

    @abc.abstractmethod
    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        """Whole sequences [B, T + 1] from random numbers.

        Inputs are all but the last token, targets all but the first. `member_B` distinguishes samples that
        share their random numbers (see `members`).
        """

    @abc.abstractmethod
    def options(self) -> dict[str, Any]:
        """The constructor arguments that this class does not have, for `at`."""

    def batch(self, split: Split, start: int, count: int, seed: int = 0) -> Batch:
        """Samples start .. start + count - 1 of a split.

        `seed` only changes the training split.
        """
        sequence = self._draw(split, start, count, seed if split == "train" else 0)
        answer = np.zeros((count, self.tokens), dtype=np.bool_)
        answer[:, self.answer_positions()] = True
        return Batch(sequence[:, :-1], sequence[:, 1:], answer, self.segment_lengths, self.members)

    @property
    def needs_memory(self) -> bool:
        """Whether the last segment alone says nothing about the answer."""
        return self.num_segments > 1

    def depths(self, batch: Batch) -> NDArray[np.float64] | None:
        """Where the fact in question stands in each sample [B], from 0 (earliest place) to 1 (latest).

        None = this task has no such place, or only one.
        """
        return batch.depth_B

    def word(self, token: int) -> str:
        """A token as text."""
        return str(token)

    def size(self, split: Split) -> int | None:
        """Number of samples in a split; None = unlimited."""
        return {"train": None, "validation": self.validation_size, "test": self.test_size}[split]

    def at(self, num_segments: int) -> Self:
        """This task with another number of segments of the same length: a shorter or longer sample.

        Raises:
            ConfigError: no sample of this task fills this many such segments.
        """
        if num_segments == self.num_segments:
            return self
        if len(set(self.segment_lengths)) > 1:
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)} are not equal, so their number cannot "
                "change"
            )
        tokens = num_segments * self.segment_lengths[0]
        length = next((n for n in range(1, tokens + 1) if self.tokens_for(n) == tokens), None)
        if length is None:
            raise ConfigError(
                f"task.num_segments={num_segments}: no {type(self).__name__} sample has the {tokens} tokens "
                f"of this many segments of {self.segment_lengths[0]}"
            )
        return self.resized(length, [self.segment_lengths[0]] * num_segments)

    def at_length(self, length: int) -> Self:
        """This task at another length, in segments of the same length; one may be shorter.

        Raises:
            ConfigError: it has no sample of this length, or its segments do not determine how to cut one.
        """
        if length == self.length:
            return self
        if len(set(self.segment_lengths)) > 1 and self.align is None:
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)} are not equal, so they do not say how to "
                "grow"
            )
        lengths = self._in_parts(self.tokens_for(length), max(self.segment_lengths))
        return self.resized(length, lengths, **self.options_at(length))

    def sized(self, size: int) -> Self:
        """This task at one of the `lengths` of an evaluation.

        Raises:
            ConfigError: it has no such sample.
        """
        return self.at(size) if self.lengths_in == "segments" else self.at_length(size)

    def stretched(self, length: int) -> Self:
        """This task at another length, in the same number of segments, which are longer or shorter.

        Raises:
            ConfigError: it has no sample of this length that divides into this many segments.
        """
        if length == self.length:
            return self
        if self.segment_lengths != self._cut(self.wished_segments, None):
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)} are given one by one, so they do not say "
                "how to grow"
            )
        return self.resized(length, None, **self.options_at(length))

    def options_at(self, length: int) -> dict[str, Any]:
        """Constructor arguments of the subclass that change with the length."""
        return {}

    def resized(self, length: int, segment_lengths: list[int] | None, **options: Any) -> Self:
        """This task at another length and with changed `options`.

        Args:
            segment_lengths: the segments; None = the same number as now.
            options: changes to `options()`.
        """
        return type(self)(
            length=length,
            num_segments=self.num_segments if segment_lengths is None else len(segment_lengths),
            segment_lengths=segment_lengths,
            align=self.align,
            batch_size=self.batch_size,
            validation_size=self.validation_size,
            test_size=self.test_size,
            **(self.options() | options),
        )

    def stages(self, one_answer: bool = False) -> tuple[Self, ...]:
        """This task in growing sizes, for a curriculum: one more segment at a time, up to the task itself.

        A number of segments is left out if no sample fills it, or if the task would have too few different
        samples. `one_answer`: the model answers once per sample.

        Raises:
            ConfigError: the segments have different lengths, which do not determine how to grow.
        """
        if len(set(self.segment_lengths)) > 1:
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)} are not equal, so a curriculum does not "
                "know how to grow; use equal lengths or curriculum=off"
            )
        return possible(self.at, range(1, self.num_segments + 1))

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        """How the T tokens are cut.

        Raises:
            ConfigError: the explicit lengths do not add up to T, or T does not divide into these segments.
        """
        if segment_lengths is None:
            return tuple(self._share("tokens", self.tokens, num_segments))
        if sum(segment_lengths) != self.tokens:
            raise ConfigError(
                f"task.segment_lengths={segment_lengths} add up to {sum(segment_lengths)}, "
                f"but task.length={self.length} makes {self.tokens} tokens"
            )
        return tuple(segment_lengths)

    def _in_parts(self, amount: int, longest: int) -> list[int]:
        """See `cutting.in_parts`."""
        return in_parts(amount, longest, self.align)

    def _share(self, what: str, amount: int, parts: int) -> list[int]:
        """See `cutting.share`; the segments beyond `parts` hold something else."""
        return share(what, amount, parts, self.wished_segments, self.length, self.align)

    def _draw(self, split: Split, start: int, count: int, seed: int) -> Ints:
        return draw(self.sequences, self.random_numbers, self.members, split, start, count, seed)


def possible(make: Callable[[int], Any], sizes: Iterable[int]) -> tuple[Any, ...]:
    """The result of `make` for each size that does not raise a ConfigError."""
    made = []
    for size in sizes:
        with contextlib.suppress(ConfigError):
            made.append(make(size))
    return tuple(made)
