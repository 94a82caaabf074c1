"""The first token sequence "of the KEY is VALUE", for the KEY before the end of the question."""

from memlab.tasks.base import SyntheticTask


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    known = read[: len(read) - task.answer_tokens + 1]
    pattern = known[-4:]  # of the KEY is
    at = next(i for i in range(len(known)) if known[i : i + 4] == pattern)
    return known[at + 4 : at + 4 + task.answer_tokens]
