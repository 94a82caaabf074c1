"""The k nearest keys, and attention over them, against comparing a query with every key."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memlab.ops import nearest as module
from memlab.ops.nearest import attend_nearest, nearest

B, H, T, K = 2, 4, 3, 5
CHUNKS = pytest.mark.parametrize("scores", [1, 100, 1 << 24])  # chunks of k rows, of a few, and all at once
SIZES = pytest.mark.parametrize(("rows", "k"), [(17, 3), (17, 1), (17, 17), (4, 9), (1, 1), (16, 4)])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ranges(rows: int) -> tuple[Tensor, Tensor]:
    """Which rows each query may see: all, nothing (in two ways), one, the first or the last few."""
    low_BS = torch.tensor([[0, rows, 0], [rows - 1, 0, rows // 2]])
    high_BS = torch.tensor([[rows, rows, 0], [rows, (rows + 1) // 2, rows]])
    return low_BS, high_BS


def by_hand(query_K: Tensor, keys_PK: Tensor, low: int, high: int, k: int) -> list[int]:
    return sorted(range(low, high), key=lambda p: float(query_K.detach() @ keys_PK[p]), reverse=True)[:k]


@CHUNKS
@SIZES
@pytest.mark.parametrize("groups", [1, 4])
def test_nearest_finds_the_rows_with_the_largest_products(
    monkeypatch: pytest.MonkeyPatch, scores: int, rows: int, k: int, groups: int
) -> None:
    monkeypatch.setattr(module, "_SCORES", scores)
    q_BGTK, keys_BGPK, (low_BS, high_BS) = (
        normal(B, groups, T, K),
        normal(B, groups, rows, K, seed=1),
        ranges(rows),
    )
    found, product = nearest(q_BGTK, keys_BGPK, low_BS, high_BS, k)
    assert found.shape == product.shape == (B, groups, T, min(k, rows))
    seen = product > -torch.inf
    for b in range(B):
        for g in range(groups):
            for t in range(T):
                expected = by_hand(q_BGTK[b, g, t], keys_BGPK[b, g], int(low_BS[b, t]), int(high_BS[b, t]), k)
                mine = found[b, g, t][seen[b, g, t]]
                assert sorted(mine.tolist()) == sorted(expected)
                torch.testing.assert_close(
                    product[b, g, t][seen[b, g, t]],
                    keys_BGPK[b, g, mine] @ q_BGTK[b, g, t],
                    rtol=1e-12,
                    atol=1e-12,
                )
                assert ((found >= 0) & (found < rows)).all(), "what nobody sees still is a row"


@CHUNKS
@SIZES
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_attention_over_the_nearest_and_the_gradient_of_its_queries(
    monkeypatch: pytest.MonkeyPatch, scores: int, rows: int, k: int, groups: int
) -> None:
    """The gradient is that of attention over the rows found, and goes to the queries alone."""
    monkeypatch.setattr(module, "_SCORES", scores)
    q_BHTK = normal(B, H, T, K).requires_grad_()
    keys_BGPK, values_BGPK = (normal(B, groups, rows, K, seed=seed).requires_grad_() for seed in (1, 2))
    low_BS, high_BS = ranges(rows)
    y_BHTK, _ = attend_nearest(q_BHTK, keys_BGPK, values_BGPK, low_BS, high_BS, k)
    expected_BHTK = []
    for b in range(B):
        for h in range(H):
            keys_PK, values_PK = (
                rows_BGPK[b, h * groups // H].detach() for rows_BGPK in (keys_BGPK, values_BGPK)
            )
            for t in range(T):
                query_K = q_BHTK[b, h, t]
                best = by_hand(query_K, keys_PK, int(low_BS[b, t]), int(high_BS[b, t]), k)
                weight = torch.exp(keys_PK[best] @ query_K)
                expected_BHTK.append(weight / weight.sum() @ values_PK[best] if best else 0.0 * query_K)
    expected = torch.stack(expected_BHTK).view_as(y_BHTK)
    torch.testing.assert_close(y_BHTK, expected, rtol=1e-10, atol=1e-10)
    wanted = normal(*y_BHTK.shape, seed=3)
    leaves = [q_BHTK, keys_BGPK, values_BGPK]
    gradient, *others = torch.autograd.grad((wanted * y_BHTK).sum(), leaves, allow_unused=True)
    torch.testing.assert_close(
        gradient, torch.autograd.grad((wanted * expected).sum(), q_BHTK)[0], rtol=1e-10, atol=1e-10
    )
    assert others == [None, None]


@CHUNKS
def test_a_query_that_may_see_nothing_gets_0(monkeypatch: pytest.MonkeyPatch, scores: int) -> None:
    monkeypatch.setattr(module, "_SCORES", scores)
    q_BHTK = normal(B, H, T, K).requires_grad_()
    for rows in (0, 6):
        memory = normal(B, 2, rows, K, seed=1)
        low_BS, high_BS = torch.full((B, T), rows), torch.full((B, T), rows)
        y_BHTK, _ = attend_nearest(q_BHTK, memory, memory, low_BS, high_BS, 4)
        assert (y_BHTK == 0).all()
        if y_BHTK.requires_grad:
            (gradient,) = torch.autograd.grad(y_BHTK.sum(), q_BHTK)
            assert (gradient == 0).all()


@pytest.mark.parametrize(("queries", "searches"), [(T, 7), (1, 7 * T)])
def test_chunks_hold_no_more_scores_than_allowed(
    monkeypatch: pytest.MonkeyPatch, queries: int, searches: int
) -> None:
    """The search is what a memory of 65,536 rows would fill the device with: rows, and if need be queries,
    are taken in pieces.
    """
    monkeypatch.setattr(module, "_SCORES", 10 * B * queries)
    monkeypatch.setattr(module, "_ROWS", 10)
    sizes = []
    largest = module._largest

    def spy(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
        sizes.append(score.numel())
        return largest(score, k)

    monkeypatch.setattr(module, "_largest", spy)
    low_B1, high_B1 = torch.zeros(B, 1, dtype=torch.long), torch.full((B, 1), 64)
    nearest(normal(B, 1, T, K), normal(B, 1, 64, K, seed=1), low_B1, high_B1, 3)
    assert len(sizes) == searches and all(size <= 10 * B * T for size in sizes)


def test_rows_that_no_query_of_a_part_may_see_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    largest = module._largest
    monkeypatch.setattr(
        module, "_largest", lambda score, k: (sizes.append(score.shape[-1]), largest(score, k))[1]
    )
    low_BS, high_BS = torch.tensor([[0, 3, 9], [2, 5, 9]]), torch.tensor([[4, 7, 9], [6, 9, 9]])
    nearest(normal(B, 1, 6, K), normal(B, 1, 40, K, seed=1), low_BS, high_BS, 3)
    assert sizes == [6, 6]


def test_queries_of_a_part_see_the_same_rows() -> None:
    """As many parts as queries give what fewer parts give whose queries all see the same."""
    q_BGTK, keys_BGPK = normal(B, 2, 6, K), normal(B, 2, 17, K, seed=1)
    low_BS, high_BS = ranges(17)
    few = nearest(q_BGTK, keys_BGPK, low_BS, high_BS, 4)
    many = nearest(q_BGTK, keys_BGPK, *(t.repeat_interleave(2, dim=1) for t in (low_BS, high_BS)), 4)
    for actual, expected in zip(few, many, strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("count", [3, 12, 95, 96, 97, 103, 104, 1000, 4099])
@pytest.mark.parametrize("values", ["any", "many equal", "most hidden"])
def test_the_largest_of_many_scores_are_those_of_sorting_them(count: int, values: str) -> None:
    score = normal(2, 3, count)
    if values == "many equal":
        score = (2 * score).round()
    if values == "most hidden":
        score = score.masked_fill(score < 1, -torch.inf)
    found, where = module._largest(score, 3)
    assert torch.equal(score.gather(-1, where), found)
    assert torch.equal(
        found.sort(-1, descending=True).values, score.sort(-1, descending=True).values[..., :3]
    )
    assert all(len(set(row)) == 3 for row in where.flatten(0, 1).tolist())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_queries_of_fp32_under_autocast(dtype: torch.dtype) -> None:
    """On CUDA a norm, and so what is normalised by it, is fp32 under autocast, while products are not;
    low_BS hides some rows.
    """
    q_BHTK, keys_BGPK, values_BGPK = (
        normal(B, 2, n, K, seed=seed).float() for seed, n in enumerate((T, 6, 6))
    )
    low_BS, high_BS = ranges(6)
    exact, _ = attend_nearest(q_BHTK, keys_BGPK, values_BGPK, low_BS, high_BS, 6)
    with torch.autocast("cpu", dtype=dtype):
        rough, _ = attend_nearest(q_BHTK, keys_BGPK, values_BGPK, low_BS, high_BS, 6)
    torch.testing.assert_close(rough.float(), exact, rtol=0.05, atol=0.05)
