"""Counts the ones, one after another."""


def solve(task: object, read: list[int]) -> list[int]:
    odd = False
    for bit in read[:-1]:
        odd ^= bit == 1
    return [int(odd)]
