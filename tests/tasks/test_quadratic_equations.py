"""Quadratic equations against plain arithmetic: texts are parsed, and the roots have to solve what was
read.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.tasks import quadratic_equations
from memlab.tasks.quadratic_equations import ALPHABET, QuadraticEquations, equation, solution
from tests.tasks.oracles.quadratic_equations import coefficients
from tests.tasks.promises import check_shapes, check_streams, near, whole

OWN = {"length": 30, "num_segments": 6, "parts": 5, "both_signs": True}
COMMON = {"segment_lengths": None, "align": None, "batch_size": 4, "validation_size": 50, "test_size": 70}


def make(**changes: Any) -> QuadraticEquations:
    return QuadraticEquations(**(OWN | COMMON | changes))


def texts(rows: np.ndarray, length: int = 30) -> list[list[str]]:
    """The equation and the parts of each sample; checks the sign between them and that padding is at the
    end alone.
    """
    samples = []
    for row in rows:
        text = "".join(" >0123456789+-*/^=()xD;,"[token] for token in row)
        assert text[length] == ">"
        pieces = text[:length] + text[length + 1 :]
        parts = [pieces[i : i + length].rstrip(" ") for i in range(0, len(pieces), length)]
        assert not any(set(part) & set(" >;") for part in parts)
        samples.append(parts)
    return samples


def value(text: str) -> int:
    """Of an expression in integers, such as (98-86)/2."""
    result = eval(text.replace("^", "**"), {"__builtins__": {}})
    assert result == int(result)
    return int(result)


def test_the_papers_example() -> None:
    assert equation(-4, 392, -2208) == "-4*x^2+392*x-2208=0"
    assert (
        ";".join(solution(-98, 552))
        == "x^2-98*x+552=0;D=98^2-4*1*552=7396=86^2;x=(98-86)/2=6;x=(98+86)/2=92;6,92"
    )


@pytest.mark.parametrize(
    ("abc", "text"),
    [
        ((1, 0, 0), "x^2=0"),
        ((-1, 1, 0), "-x^2+x=0"),
        ((2, -1, 1), "2*x^2-x+1=0"),
        ((1, 11, -1), "x^2+11*x-1=0"),
        ((10, 2000, 100000), "10*x^2+2000*x+100000=0"),
    ],
)
def test_terms_of_zero_and_factors_of_one_are_left_out(abc: tuple[int, int, int], text: str) -> None:
    assert equation(*abc) == text and coefficients(text) == abc


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_roots_solve_the_equation_and_every_step_is_true(split: Any) -> None:
    with_roots = 0
    for read, canonical, discriminant, lower, higher, answer in texts(whole(make().batch(split, 3, 400))):
        a, b, c = coefficients(read)
        assert 1 <= abs(a) <= 10 and coefficients(canonical) == (1, b // a, c // a) and b % a == c % a == 0
        _, *steps = discriminant.split("=")
        assert discriminant.startswith("D=") and len({value(step) for step in steps}) == 1
        assert value(steps[0]) * a * a == b * b - 4 * a * c
        if value(steps[0]) < 0:
            assert len(steps) == 2 and lower == higher == answer == ""
            continue
        with_roots += 1
        assert len(steps) == 3
        roots = [int(root) for root in answer.split(",")]
        assert roots == sorted(roots) and len(roots) == 2 and all(-100 <= x <= 100 for x in roots)
        assert all(a * x * x + b * x + c == 0 for x in roots) and sum(roots) * a == -b
        for part, root in zip((lower, higher), roots, strict=True):
            name, formula, result = part.split("=")
            assert name == "x" and value(formula) == int(result) == root
    assert near(with_roots / 400, 0.8, 400)


@pytest.mark.parametrize("both_signs", [True, False])
def test_draws_are_uniform(both_signs: bool) -> None:
    samples = texts(whole(make(both_signs=both_signs).batch("train", 0, 6000)))
    factors = np.unique([coefficients(read)[0] for read, *_ in samples], return_counts=True)
    expected = [f for f in range(-10, 11) if f and (both_signs or f > 0)]
    assert factors[0].tolist() == expected and all(
        near(n / 6000, 1 / len(expected), 6000) for n in factors[1]
    )
    roots = np.array([[int(x) for x in answer.split(",")] for *_, answer in samples if answer])
    assert near(float((roots == 100).any(axis=1).mean()), 1 - (200 / 201) ** 2, len(roots))
    assert near(float((roots.max(axis=1) <= 0).mean()), (101 / 201) ** 2, len(roots))
    assert near(float((roots[:, 0] == roots[:, 1]).mean()), 1 / 201, len(roots))
    without = np.array([coefficients(parts[1])[1:] for parts in samples if not parts[5]])
    assert (np.abs(without[:, 0]) < 200).all() and (without[:, 1] <= 10000).all()
    assert near(float((without[:, 0] < 0).mean()), 199 / 399, len(without))
    assert near(float((np.abs(without[:, 0]) < 100).mean()), 199 / 399, len(without))


def digits(n: np.ndarray) -> np.ndarray:
    """Characters of the numbers, with their minus."""
    return np.array([len(str(i)) for i in range(-50_000, 110_001)])[n + 50_000]


def canonical_length(b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """x^2, =0, a sign before each number, and *x; less for coefficients of 0 and 1."""
    middle = np.where(b == 0, 0, np.where(np.abs(b) == 1, 2, 3 + digits(np.abs(b))))
    return 5 + middle + np.where(c == 0, 0, 1 + digits(np.abs(c)))


def part_lengths() -> tuple[list[np.ndarray], np.ndarray]:
    """Characters of each part for every draw that there is, and the probability of each draw: roots,
    then without.
    """
    roots = np.array(list(itertools.product(range(-100, 101), repeat=2)))
    b, c, low, high = -roots.sum(axis=1), roots.prod(axis=1), roots.min(axis=1), roots.max(axis=1)
    square, gap = digits(b * b - 4 * c), digits(high - low)
    step = 10 + digits(np.abs(b)) + digits(c) + square  # D= ^2 -4*1* =
    real = [
        canonical_length(b, c),
        step + 3 + gap,
        *(8 + digits(-b) + gap + digits(x) for x in (low, high)),
        1 + digits(low) + digits(high),
    ]
    b = np.repeat(np.arange(-199, 200), [10000 - b * b // 4 for b in range(-199, 200)])
    c = np.concatenate([np.arange(b * b // 4 + 1, 10001) for b in range(-199, 200)])
    none = np.zeros_like(b)
    without = [
        canonical_length(b, c),
        10 + digits(np.abs(b)) + digits(c) + digits(b * b - 4 * c),
        none,
        none,
        none,
    ]
    chances = np.concatenate([np.full(len(roots), 0.8 / len(roots)), 0.2 / 399 / (10000 - b * b // 4)])
    return [np.concatenate(both) for both in zip(real, without, strict=True)], chances


def test_every_draw_fits_and_chance_is_the_exact_share_of_padding() -> None:
    lengths, chances = part_lengths()
    assert chances.sum() == pytest.approx(1)
    assert [int(part.max()) for part in lengths] == [17, 28, 19, 17, 9] and quadratic_equations.LONGEST == 28
    means = [float((part * chances).sum()) for part in lengths]
    assert pytest.approx(means, abs=1e-6) == quadratic_equations.MEAN
    for parts in range(1, 6):
        assert make(parts=parts, num_segments=1 + parts).chance == pytest.approx(
            1 - sum(means[:parts]) / (30 * parts), abs=1e-6
        )
    longest = [equation(a, a * b, a * c) for a in (-10, 10) for b in (-200, 200) for c in (-10000, 10000)]
    assert max(len(text) for text in longest) == 23  # no draw has larger coefficients


@pytest.mark.parametrize("changes", [{}, {"parts": 2, "length": 28, "num_segments": 1}])
def test_no_other_constant_guess_is_better_than_padding(changes: dict[str, Any]) -> None:
    task = make(**changes)
    answers = task.batch("train", 0, 4000).targets_BT[:, task.length :]
    shares = np.bincount(answers.ravel(), minlength=24) / answers.size
    assert shares.argmax() == 0
    per_sample = (answers == 0).mean(axis=1)
    assert abs(per_sample.mean() - task.chance) < 4 * per_sample.std() / np.sqrt(4000)


def test_nothing_after_the_first_segment_but_the_answer_itself_tells_of_the_equation() -> None:
    """What is not an answer token there, and so not the model's own prediction,
    is the same sign in every sample.
    """
    batch = make().batch("test", 0, 200)
    first = int(batch.answer_BT[0].argmax())
    assert first == 30 == batch.segment_lengths[0] and batch.answer_BT[:, first:].all()
    assert (batch.tokens_BT[:, 30] == ALPHABET.index(">")).all()


def test_the_promises_of_every_task_are_kept_with_fewer_parts() -> None:
    task, twin = (make(both_signs=False, parts=3, num_segments=4) for _ in range(2))
    check_shapes(task)
    check_streams(task, twin)


def test_distinct_counts_the_contents() -> None:
    without = len(part_lengths()[1]) - 201**2
    assert (
        make().distinct == (201 * 202 // 2 + without) * 20
        and make(both_signs=False).distinct == make().distinct // 2
    )


def test_parts_are_added_one_by_one_up_to_the_task_itself() -> None:
    task = make()
    assert [(stage.parts, stage.segment_lengths) for stage in task.stages()] == [
        (n, (30,) * (n + 1)) for n in range(1, 6)
    ]
    assert (whole(task.stages()[-1].batch("test", 0, 20)) == whole(task.batch("test", 0, 20))).all()
    assert [(stage.parts, stage.segment_lengths) for stage in make(num_segments=2).stages()] == [
        (2, (90,)),
        (5, (90, 90)),
    ]
    assert [stage.parts for stage in make(num_segments=1).stages()] == [5]
    assert whole(task.at(3).batch("test", 0, 9)).shape == (9, 91)


def test_mistakes_are_told_with_what_is_allowed() -> None:
    with pytest.raises(
        ConfigError, match=r"task\.length=27: the longest part has 28 characters; use 28 or more"
    ):
        make(length=27)
    assert len(texts(whole(make(length=28).batch("train", 0, 50)), 28)) == 50
    with pytest.raises(ConfigError, match=r"task\.parts=6: .*1 to 5"):
        make(parts=6)
    with pytest.raises(ConfigError, match=r"task\.num_segments=7.*possible numbers are \[1, 2, 3, 4, 5, 6"):
        make(num_segments=7)
    for count in (1, 7):
        with pytest.raises(
            ConfigError,
            match=rf"task\.num_segments={count}: segments of \[30\] tokens do not hold 1 to 5 whole parts",
        ):
            make().at(count)
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[90, 30, 60\] are not equal"):
        make(segment_lengths=[90, 30, 60]).stages()
    with pytest.raises(ConfigError, match=r"task\.parts=5: 150 answer tokens; .*answers once"):
        make().stages(one_answer=True)
