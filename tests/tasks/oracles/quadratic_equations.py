"""Reads the equation as text, and finds its roots by trying all numbers instead of by the formula."""

import re

from memlab.tasks.quadratic_equations import QuadraticEquations

CHARACTERS = " >0123456789+-*/^=()xD;,"


def coefficients(text: str) -> tuple[int, int, int]:
    """a, b, c of '-4*x^2+392*x-2208=0'."""
    found = [0, 0, 0]
    for sign, number, power in re.findall(r"([+-]?)(\d*)\*?(x\^2|x|)", text.removesuffix("=0")):
        if number or power:
            found[("x^2", "x", "").index(power)] += (-1 if sign == "-" else 1) * int(number or 1)
    return found[0], found[1], found[2]


def parts(text: str) -> list[str]:
    """The five parts of the solution."""
    a, b, c = coefficients(text)
    b, c = b // a, c // a
    canonical = re.sub(r"\b1\*x", "x", f"x^2{b:+d}*x{c:+d}=0".replace("+0*x", "").replace("+0=", "="))
    square = b**2 - 4 * c
    roots = [x for x in range(-100, 101) if x * x + b * x + c == 0]
    if not roots:
        return [canonical, f"D={abs(b)}^2-4*1*{c}={square}", "", "", ""]
    low, high = roots[0], roots[-1]
    gap = high - low
    middle = [f"x=({-b}{sign}{gap})/2={x}" for sign, x in (("-", low), ("+", high))]
    return [canonical, f"D={abs(b)}^2-4*1*{c}={square}={gap}^2", *middle, f"{low},{high}"]


def solve(task: QuadraticEquations, read: list[int]) -> list[int]:
    text = "".join(CHARACTERS[token] for token in read[: read.index(CHARACTERS.index(">"))])
    answer = "".join(part.ljust(len(text)) for part in parts(text.rstrip(" "))[: task.parts])
    return [CHARACTERS.index(character) for character in answer]
