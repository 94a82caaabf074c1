"""Reads the assignments in order; a later one of the same key takes the place of an earlier one."""

from memlab.tasks.base import SyntheticTask


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    asked = task.answer_positions()
    value_of = {}
    for i in range(0, asked[0], 2):
        value_of[read[i]] = read[i + 1]
    return [value_of[read[t]] for t in asked]
