"""The digits after the marker."""

from memlab.tasks.base import SyntheticTask

MARKER = 10


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    begin = read.index(MARKER) + 1
    return read[begin : begin + task.answer_tokens]
