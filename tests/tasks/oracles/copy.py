"""The symbols before the start sign, twice."""

START = 1


def solve(task: object, read: list[int]) -> list[int]:
    return read[: read.index(START)] * 2
