"""Transformer-XL's way to tell positions: distances, their sinusoids,
the shift from scores by distance to scores by key, and attention.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.ops import distance_attention as module
from memlab.ops.distance_attention import by_key, distance_attention, distances

CPU = torch.device("cpu")
SIZES = [(1, 1), (1, 6), (2, 2), (3, 3), (2, 5), (4, 5), (5, 9), (3, 40)]  # queries, keys


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def shift(score_BHTW: Tensor, keys: int) -> Tensor:
    return by_key(F.pad(score_BHTW, (0, 1)), keys)


def behind(queries: int, keys: int, query: int, key: int) -> int:
    """How far a key is behind a query, when the queries are the last of the keys' tokens."""
    return (keys - queries + query) - key


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("ahead", [False, True])
def test_distances_are_all_that_occur_from_the_farthest_behind_to_the_nearest_or_farthest_ahead(
    queries: int, keys: int, ahead: bool
) -> None:
    occur = {behind(queries, keys, i, j) for i in range(queries) for j in range(keys)}
    wanted = sorted((d for d in occur if ahead or d >= 0), reverse=True)
    distance_W = distances(queries, keys, ahead, CPU)
    assert distance_W.tolist() == wanted
    assert not distance_W.is_floating_point()


@pytest.mark.parametrize(("queries", "keys"), SIZES)
@pytest.mark.parametrize("ahead", [False, True])
def test_shift_gives_every_key_the_score_of_its_distance(queries: int, keys: int, ahead: bool) -> None:
    """Without distances ahead, what stands at keys ahead of their query is of no meaning."""
    distance_W = distances(queries, keys, ahead, CPU).tolist()
    score_BHTW = normal(2, 3, queries, len(distance_W)).requires_grad_()
    shifted_BHTL = shift(score_BHTW, keys)
    assert shifted_BHTL.shape == (2, 3, queries, keys)
    met = torch.zeros_like(score_BHTW)
    for i in range(queries):
        for j in range(keys):
            distance = behind(queries, keys, i, j)
            if distance >= 0 or ahead:
                column = distance_W.index(distance)
                assert torch.equal(shifted_BHTL[:, :, i, j], score_BHTW[:, :, i, column])
                met[:, :, i, column] += 1
    may_look = torch.ones(queries, keys).tril(keys if ahead else keys - queries)
    (gradient,) = torch.autograd.grad((shifted_BHTL * may_look).sum(), score_BHTW)
    assert torch.equal(gradient, met)


@pytest.mark.parametrize("ahead", [False, True])
def test_no_query_has_no_scores(ahead: bool) -> None:
    """A memory is opened by reading no token."""
    distance_W = distances(0, 5, ahead, CPU)
    assert shift(torch.empty(2, 3, 0, len(distance_W)), 5).shape == (2, 3, 0, 5)


# pieces of a query, of a few, of rows of the batch, and all at once
@pytest.mark.parametrize("scores", [1, 30, 100, 1 << 20])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (3, 3), (4, 9), (7, 8)])
@pytest.mark.parametrize("mask_has_rows", [False, True])
@pytest.mark.parametrize("ahead", [False, True])
def test_attention_is_softmax_of_the_papers_four_terms(
    monkeypatch: pytest.MonkeyPatch, scores: int, queries: int, keys: int, mask_has_rows: bool, ahead: bool
) -> None:
    """Section 3.3, score by score; values and all gradients, in whatever pieces."""
    monkeypatch.setattr(module, "_SCORES", scores)
    batch, heads, width = 3, 2, 4
    distance_W = distances(queries, keys, ahead, CPU).tolist()
    shapes = {
        "q": (batch, heads, queries, width),
        "k": (batch, heads, keys, width),
        "v": (batch, heads, keys, width),
    }
    shapes |= {"r": (heads, len(distance_W), width), "u_HK": (heads, width), "v_HK": (heads, width)}
    leaves = {name: normal(*shape).roll(n).requires_grad_() for n, (name, shape) in enumerate(shapes.items())}
    q, k, v, r, u_HK, v_HK = leaves.values()
    mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries + (2 if ahead else 0))
    if mask_has_rows:
        mask = mask.repeat(batch, 1, 1, 1)
        mask[1, 0, :, : keys - queries] = False
    rows = []
    for b in range(batch):
        for h in range(heads):
            for i in range(queries):
                seen = [j for j in range(keys) if mask.expand(batch, 1, queries, keys)[b, 0, i, j]]
                terms = [
                    (q[b, h, i] + u_HK[h]) @ k[b, h, j]
                    + (q[b, h, i] + v_HK[h]) @ r[h, distance_W.index(behind(queries, keys, i, j))]
                    for j in seen
                ]
                weight = (torch.stack(terms) / math.sqrt(width)).softmax(0)
                rows.append(weight @ v[b, h, seen])
    expected = torch.stack(rows).view(batch, heads, queries, width)
    y = distance_attention(q, k, v, r, u_HK, v_HK, mask, ahead)
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    wanted = normal(*y.shape).flip(0)
    found, right = (
        torch.autograd.grad((wanted * output).sum(), list(leaves.values())) for output in (y, expected)
    )
    for name, actual, gradient in zip(leaves, found, right, strict=True):
        torch.testing.assert_close(
            actual, gradient, rtol=1e-10, atol=1e-10, msg=lambda text, name=name: f"{name}: {text}"
        )
    with torch.no_grad():
        assert torch.equal(distance_attention(q, k, v, r, u_HK, v_HK, mask, ahead), y)
