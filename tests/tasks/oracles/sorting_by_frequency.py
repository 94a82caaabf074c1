"""Counts the symbols before the separator."""

from collections import Counter

SEPARATOR = 0


def solve(task: object, read: list[int]) -> list[int]:
    return [symbol for symbol, _ in Counter(read[: read.index(SEPARATOR)]).most_common()]
