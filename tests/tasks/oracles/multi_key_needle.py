"""The digits after the marker with the key that the question names."""

from memlab.tasks.base import SyntheticTask

MARKER, QUESTION = 10, 11


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    key = read[read.index(QUESTION) + 1]
    begin = next(i for i, token in enumerate(read) if token == MARKER and read[i + 1] == key) + 2
    return read[begin : begin + task.answer_tokens]
