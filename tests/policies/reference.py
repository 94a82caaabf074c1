"""An independent reading of one layer with a bounded cache: loops over tokens and heads, with lists.

The policies are written here from the formulas of their papers. Queries, keys and values come from the
layer's own projections, which have tests of their own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
from torch import Tensor

Weights = dict[int, float]  # by position of the key


@dataclass
class Seen:
    """What a rule decides on, for one document: heads are counted from 0.

    Attributes:
        rows: positions in each key-value head, in order.
        attention: of each query since the last decision, weights in each query head.
        keys: [G, T, K].
        length: tokens so far.
        notes: of the rule, carried.
    """

    rows: list[list[int]]
    attention: list[list[Weights]]
    keys: Any
    length: int
    notes: dict[str, Any] = field(default_factory=dict)

    def of_group(self, query: list[Weights], group: int, key: int) -> float:
        """Weight of one key, mean over the query heads that share its key-value head."""
        shared = len(query) // len(self.rows)
        heads = query[group * shared : (group + 1) * shared]
        return sum(head.get(key, 0.0) for head in heads) / shared


Rule = Callable[[Seen], list[list[int]]]


def read(
    q_HTK: Tensor, k_GTK: Tensor, v_GTK: Tensor, segments: list[int], rule: Rule, every: int | None = None
) -> tuple[Any, list[list[list[int]]]]:
    """One document: outputs [T, H, K], and the positions in each head's cache after each segment."""
    q, k, v = (t.detach().numpy() for t in (q_HTK, k_GTK, v_GTK))
    heads, total, width = q.shape
    groups = len(k)
    output, kept, notes = np.zeros((total, heads, width)), [], {}
    cache: list[list[int]] = [[] for _ in range(groups)]
    new: list[int] = []
    queries: list[list[Weights]] = []
    t = 0
    for n in segments:
        for i in range(n):
            new.append(t)
            weights = []
            for h in range(heads):
                group = h * groups // heads
                columns = cache[group] + new
                scores = [float(q[h, t] @ k[group, c]) / math.sqrt(width) for c in columns]
                powers = [math.exp(s - max(scores)) for s in scores]
                weights.append({c: p / sum(powers) for c, p in zip(columns, powers, strict=True)})
                output[t, h] = sum(w * v[group, c] for c, w in weights[-1].items())
            queries.append(weights)
            t += 1
            if i == n - 1 or (every is not None and (i + 1) % every == 0):
                seen = Seen([rows + new for rows in cache], queries, k, t, notes)
                cache = [sorted(rows) for rows in rule(seen)]
                new, queries = [], []
        kept.append([list(rows) for rows in cache])
    return output, kept


def room(budget: float, length: int, least: int = 0) -> int:
    if isinstance(budget, int):
        return budget
    return max(math.ceil(Fraction(str(budget)) * length), least)


def largest(rows: list[int], score: dict[int, float], number: int, always: set[int]) -> list[int]:
    """The rows that stay anyway, and of the others those with the largest scores; the older one of two."""
    first = [row for row in rows if row in always]
    others = sorted(
        (row for row in rows if row not in always), key=lambda row: (-np.float32(score[row]), row)
    )
    return first + others[: max(0, number - len(first))]


def protected(rows: list[int], length: int, sinks: int, recent: int) -> set[int]:
    return {row for row in rows if row < sinks or row >= length - recent}


def full() -> Rule:
    return lambda seen: seen.rows


def streaming(budget: float, sinks: int) -> Rule:
    def rule(seen: Seen) -> list[list[int]]:
        n = room(budget, seen.length, sinks)
        return [
            rows
            if len(rows) <= n
            else [r for r in rows if r < sinks]
            + ([r for r in rows if r >= sinks][sinks - n :] if n > sinks else [])
            for rows in seen.rows
        ]

    return rule


def h2o(
    budget: float, sinks: int = 0, recent: int | None = None, decay: float = 1.0, normalise: bool = False
) -> Rule:
    def rule(seen: Seen) -> list[list[int]]:
        n = room(budget, seen.length, sinks + (recent or 0))
        last = min(n // 2, n - sinks) if recent is None else recent
        sums = seen.notes.setdefault("F", [{} for _ in seen.rows])
        asked = seen.notes.setdefault("queries", [{} for _ in seen.rows])
        kept = []
        first = seen.length - len(seen.attention)
        for group, rows in enumerate(seen.rows):
            for step, query in enumerate(seen.attention):
                for row in rows:
                    if row > first + step:
                        continue
                    sums[group][row] = decay * sums[group].get(row, 0.0) + seen.of_group(query, group, row)
                    asked[group][row] = decay * asked[group].get(row, 0.0) + 1
            score = {row: sums[group][row] / (asked[group][row] if normalise else 1) for row in rows}
            kept.append(largest(rows, score, n, protected(rows, seen.length, sinks, last)))
        return kept

    return rule


def l2(budget: float, sinks: int = 0, recent: int = 0, after: int = 0) -> Rule:
    def rule(seen: Seen) -> list[list[int]]:
        if seen.length <= after:
            return seen.rows
        n, kept = room(budget, seen.length, sinks + recent), []
        for group, rows in enumerate(seen.rows):
            score = {r: -math.sqrt(sum(x * x for x in seen.keys[group, r].astype(np.float32))) for r in rows}
            kept.append(largest(rows, score, n, protected(rows, seen.length, sinks, recent)))
        return kept

    return rule


def tova(budget: float, sinks: int = 0, recent: int = 0) -> Rule:
    def rule(seen: Seen) -> list[list[int]]:
        n, last = room(budget, seen.length, sinks + recent), seen.attention[-1]
        kept = []
        for rows in seen.rows:
            score = {row: sum(head[row] for head in last) / len(last) for row in rows}
            kept.append(largest(rows, score, n, protected(rows, seen.length, sinks, recent)))
        return kept

    return rule


def snapkv(budget: float, window: int, kernel: int, pooling: str, sinks: int = 0, after: int = 0) -> Rule:
    def rule(seen: Seen) -> list[list[int]]:
        if seen.length <= after:
            return seen.rows
        n, kept = room(budget, seen.length, sinks + window), []
        for group, rows in enumerate(seen.rows):
            prefix = [row for row in rows if row < seen.length - window]
            sums = [
                sum(seen.of_group(query, group, row) for query in seen.attention[-window:]) for row in prefix
            ]
            score = dict.fromkeys(rows, 0.0)
            for i, row in enumerate(prefix):
                around = range(i - kernel // 2, i + kernel // 2 + 1)
                near = [sums[j] if 0 <= j < len(sums) else 0.0 for j in around]
                score[row] = max(near) if pooling == "max" else sum(near) / kernel
            kept.append(largest(rows, score, n, protected(rows, seen.length, sinks, window)))
        return kept

    return rule
