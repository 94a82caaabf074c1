"""The symbols before the start sign, backwards."""

START = 1


def solve(task: object, read: list[int]) -> list[int]:
    return read[: read.index(START)][::-1]
