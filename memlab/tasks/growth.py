"""The stages of a curriculum: the same task in several sizes, from small ones to the task itself.

    task             the task's own stages (`SyntheticTask.stages`)
    segments         more segments of the same length
    length           longer samples in segments of the same length; the last (or first, see `task.align`) may
                     be shorter
    segment_length   longer samples in the same number of segments, which get longer

For a task in S segments of N tokens, `segments` and `length` fix N and change S, the first in whole segments,
the second to any length; `segment_length` fixes S and changes N.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from memlab.errors import ConfigError
from memlab.tasks.base import SyntheticTask, Task, possible
from memlab.tasks.text import TextTask

By = Literal["task", "segments", "length", "segment_length"]


def stages(task: Task, by: By, sizes: Sequence[int] | None, one_answer: bool = False) -> tuple[Any, ...]:
    """The stages of a curriculum; the last is the task itself.

    Args:
        sizes: numbers of segments, or lengths, that grow to the task's own. None = each number of segments,
            or the length halved as often as possible, without sizes that have too few different samples or
            cannot be cut.
        one_answer: whether the model answers once per sample.

    Raises:
        ConfigError: the task cannot grow in this way, or not to these sizes.
    """
    name = type(task).__name__
    if isinstance(task, TextTask):
        if by not in ("task", "segments"):
            raise ConfigError(
                f"curriculum.by={by}: text has no length to grow; use segments, which are read in a step"
            )
        return _sized("segments", sizes, task.num_segments, range(1, task.num_segments + 1), task.at, name)
    assert isinstance(task, SyntheticTask)
    if by == "task":
        if sizes is not None:
            raise ConfigError(
                f"curriculum.sizes={list(sizes)}: {name} has stages of its own; use "
                "curriculum.by=segments|length|segment_length"
            )
        return task.stages(one_answer)
    if by == "segments":
        return _sized(by, sizes, task.num_segments, range(1, task.num_segments + 1), task.at, name)
    halves = sorted({task.length >> i for i in range(task.length.bit_length())})
    return _sized(by, sizes, task.length, halves, task.at_length if by == "length" else task.stretched, name)


def _sized(
    by: str,
    sizes: Sequence[int] | None,
    own: int,
    usual: Sequence[int],
    make: Callable[[int], Any],
    name: str,
) -> tuple[Any, ...]:
    if sizes is None:
        made = possible(make, usual)
        if len(made) < 2 and own > 1:
            try:
                make(usual[-2])
            except ConfigError as error:
                raise ConfigError(
                    f"curriculum.by={by}: {name} as configured cannot grow so ({error}); use curriculum=off"
                ) from None
        return made
    if list(sizes) != sorted(set(sizes)) or sizes[-1] != own:
        key = "task.num_segments" if by == "segments" else "task.length"
        raise ConfigError(
            f"curriculum.sizes={list(sizes)}: they have to grow, each larger than the one before, to "
            f"{key}={own}"
        )
    try:
        return tuple(make(size) for size in sizes)
    except ConfigError as error:
        raise ConfigError(f"curriculum.sizes={list(sizes)}: {error}") from None
