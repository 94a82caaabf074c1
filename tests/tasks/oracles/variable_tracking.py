"""Goes back from the asked variable to what it was assigned, until that is a value."""


def solve(task: object, read: list[int]) -> list[int]:
    *context, token = read
    source = dict(zip(context[::2], context[1::2], strict=True))
    while token in source:
        token = source[token]
    return [token]
