"""Looks each asked key up among the pairs; where no key stands before the separator, repeats all pairs."""

SEPARATOR = 10


def solve(task: object, read: list[int]) -> list[int]:
    first = read.index(SEPARATOR)
    if first % 2 == 0:
        return read[:first]
    value_of = dict(zip(read[: first - 1 : 2], read[1 : first - 1 : 2], strict=True))
    return [value_of[read[i - 1]] for i, token in enumerate(read) if token == SEPARATOR]
