"""Reads two tokens at a time: a key and its value, or two of noise, which nobody asks for."""

from memlab.tasks.base import SyntheticTask


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    asked = task.answer_positions()
    value_of = dict(zip(read[: asked[0] : 2], read[1 : asked[0] : 2], strict=True))
    return [value_of[read[t]] for t in asked]
