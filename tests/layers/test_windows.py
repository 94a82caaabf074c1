"""Caches before segments: what is cut out of the rows of a document, and who may look at which of them,
against loops.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memlab.layers import windows

CACHED_SEGMENTS_TOKENS = [
    *[(0, 1, 4), (0, 3, 2), (0, 3, 1)],  # no cache
    *[(1, 3, 4), (3, 2, 5), (2, 1, 3)],  # smaller than a segment
    *[(3, 4, 3), (1, 5, 1), (4, 1, 4)],  # as large
    *[(5, 3, 4), (7, 4, 3), (9, 3, 2), (3, 4, 1), (6, 1, 2)],  # larger, also than several
]


def rows(*shape: int) -> Tensor:
    """Every number is a different one."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64).view(shape)


def of_documents(mask: Tensor, cached: int, shape: tuple[int, ...]) -> Tensor:
    """A mask for each document: without a cache all documents have the same, [T, L]."""
    assert mask.dtype == torch.bool and mask.shape == (shape if cached else shape[2:])
    return mask.expand(shape)


@pytest.mark.parametrize(("cached", "segments", "tokens"), CACHED_SEGMENTS_TOKENS)
def test_cut_gives_each_segment_the_rows_before_it_and_its_own(
    cached: int, segments: int, tokens: int
) -> None:
    """Values, and how often each row is looked at (its gradient)."""
    b, h, k = 2, 3, 2
    rows_BHRK = rows(b, h, cached + (segments - 1) * tokens, k).requires_grad_()
    own_BHTK = (-1 - rows(b, h, segments * tokens, k)).requires_grad_()
    cut_FHLK = windows.cut(rows_BHRK, own_BHTK, segments)
    assert cut_FHLK.shape == (b * segments, h, cached + tokens, k)
    looks_at = {"rows": torch.zeros_like(rows_BHRK), "own": torch.zeros_like(own_BHTK)}
    for row in range(b):
        for s in range(segments):
            for place in range(cached + tokens):
                # in the document; the cache before the first segment ends at -1
                position = s * tokens - cached + place
                if place < cached:
                    expected = rows_BHRK[row, :, position + cached]
                    looks_at["rows"][row, :, position + cached] += 1
                else:
                    expected = own_BHTK[row, :, position]
                    looks_at["own"][row, :, position] += 1
                assert torch.equal(cut_FHLK[row * segments + s, :, place], expected)
    gradients = torch.autograd.grad(
        cut_FHLK.sum(), (rows_BHRK, own_BHTK), allow_unused=True, materialize_grads=True
    )
    for actual, expected in zip(gradients, looks_at.values(), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize(("segments", "tokens"), [(1, 1), (1, 5), (5, 1), (2, 3), (3, 2)])
def test_fold_puts_segments_into_the_batch_and_unfold_takes_them_out(segments: int, tokens: int) -> None:
    x_BHTK = rows(2, 3, segments * tokens, 2)
    folded_FHNK = windows.fold(x_BHTK, segments)
    assert folded_FHNK.shape == (2 * segments, 3, tokens, 2)
    for b in range(2):
        for s in range(segments):
            for i in range(tokens):
                assert torch.equal(folded_FHNK[b * segments + s, :, i], x_BHTK[b, :, s * tokens + i])
    assert torch.equal(windows.unfold(folded_FHNK, segments), x_BHTK)


@pytest.mark.parametrize("leading", [(2,), (2, 3)], ids=["BCD", "BHCK"])
@pytest.mark.parametrize(
    ("there", "size"), [(0, 0), (0, 3), (1, 4), (3, 4), (4, 4), (5, 4), (9, 2), (3, 1), (3, 0)]
)
def test_fit_keeps_the_last_rows_with_zeros_before_them(
    there: int, size: int, leading: tuple[int, ...]
) -> None:
    x = 1 + rows(*leading, there, 2)
    fitted = windows.fit(x, size)
    assert fitted.shape == (*leading, size, 2)
    for from_the_end in range(1, size + 1):
        expected = (
            x[..., there - from_the_end, :]
            if from_the_end <= there
            else torch.zeros(*leading, 2, dtype=x.dtype)
        )
        assert torch.equal(fitted[..., size - from_the_end, :], expected)


@pytest.mark.parametrize("reach", [None, 1, 2, 4, 50])
@pytest.mark.parametrize("cached", [0, 1, 3, 6])
@pytest.mark.parametrize(("read", "queries"), [(0, 1), (0, 4), (3, 1), (2, 3), (1, 0)])
def test_a_token_sees_itself_and_what_is_before_it_as_far_as_its_document_and_its_reach_go(
    cached: int, read: int, queries: int, reach: int | None
) -> None:
    filled = sorted({0, 1, cached // 2, cached} & set(range(cached + 1)))
    mask = windows.visible(windows.filled(cached, torch.tensor(filled)), read, queries, reach)
    mask = of_documents(mask, cached, (len(filled), 1, queries, cached + read + queries))
    for b, own in enumerate(filled):
        for i in range(queries):
            sees = set()
            for position in range(-own, read + i + 1):  # within the segment
                if reach is None or read + i - position < reach:
                    sees.add(cached + position)
            assert {key for key, may in enumerate(mask[b, 0, i].tolist()) if may} == sees


@pytest.mark.parametrize("reach", [None, 1, 3, 5])
@pytest.mark.parametrize(("cached", "segments", "tokens"), CACHED_SEGMENTS_TOKENS)
def test_in_later_segments_the_cache_is_filled_by_the_segments_before(
    cached: int, segments: int, tokens: int, reach: int | None
) -> None:
    """Told by positions in the document, of which `filled` rows were read before the first of these
    segments.
    """
    filled = [0, cached, cached // 2]
    mask = windows.visible_all(cached, torch.tensor(filled), segments, tokens, reach)
    mask = of_documents(mask, cached, (3 * segments, 1, tokens, cached + tokens))
    for b, read_before in enumerate(filled):
        for s in range(segments):
            first = s * tokens - cached  # position of the first key
            for i in range(tokens):
                token = s * tokens + i
                sees = [
                    -read_before <= p <= token and (reach is None or token - p < reach)
                    for p in range(first, first + cached + tokens)
                ]
                assert mask[b * segments + s, 0, i].tolist() == sees


@pytest.mark.parametrize(("cached", "segments", "tokens"), CACHED_SEGMENTS_TOKENS)
def test_every_token_sees_itself(cached: int, segments: int, tokens: int) -> None:
    """A softmax over nothing would be no number."""
    mask = windows.visible_all(cached, torch.tensor([0, cached]), segments, tokens, reach=1)
    mask = of_documents(mask, cached, (2 * segments, 1, tokens, cached + tokens))
    assert torch.equal(
        mask[:, 0, :, cached:], torch.eye(tokens, dtype=torch.bool).expand(2 * segments, -1, -1)
    )
    assert not mask[..., :cached].any()
