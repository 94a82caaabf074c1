"""Windows of remembered rows: before one segment, and before each of many segments at once.

    recurrent    [remembered (C) | segment (N)]                  one segment
    parallel     rows -C .. (S - 1) N - 1 of the document, cut into S windows of C rows, each N rows after the
                 previous one

Rows that the document has not filled yet stand at the front and are masked.

Shapes: B batch, H heads, S segments, N tokens in a segment, T = S * N, C remembered rows, L = C + N, K head
width, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def fit(rows_BCD: Tensor, size: int) -> Tensor:
    """The last `size` rows of dimension -2, with zeros in front if there are fewer."""
    missing = size - rows_BCD.shape[-2]
    return F.pad(rows_BCD, (0, 0, missing, 0)) if missing > 0 else rows_BCD[..., -missing:, :]


def filled(size: int, tokens_B: Tensor) -> Tensor:
    """bool [B, C]: which remembered rows (the last ones) belong to a document with `tokens_B` tokens."""
    return torch.arange(-size, 0, device=tokens_B.device) >= -tokens_B[:, None]


def cut(rows_BHRK: Tensor, own_BHTK: Tensor, segments: int) -> Tensor:
    """The rows that each segment looks at, [window of remembered rows ; own rows], folded into the batch.

    Args:
        rows_BHRK: the R = C + (S - 1) N rows before the last segment.
        own_BHTK: the T rows of the segments themselves.

    Returns:
        [B * S, H, C + N, K], contiguous.
    """
    n = own_BHTK.shape[2] // segments
    own_BHSNK = own_BHTK.unflatten(2, (segments, n))
    windows = [before(rows_BHRK, n, segments), own_BHSNK]
    return torch.cat([window.transpose(1, 2) for window in windows], dim=3).flatten(0, 1)


def before(rows_BHRK: Tensor, step: int, segments: int) -> Tensor:
    """The windows of S segments, each `step` rows after the one before: [B, H, S, C, K].

    Args:
        rows_BHRK: R = C + (S - 1) step rows.
    """
    size = rows_BHRK.shape[2] - (segments - 1) * step
    if size == step:  # the usual case is a plain reshape
        return rows_BHRK.unflatten(2, (segments, step))
    if size:
        return rows_BHRK.unfold(2, size, step).transpose(-1, -2)
    return rows_BHRK[:, :, :0].unsqueeze(2).expand(-1, -1, segments, -1, -1)


def fold(x_BHTK: Tensor, segments: int) -> Tensor:
    """Fold segments into the batch: [B, H, T, K] to [B * S, H, N, K]."""
    return x_BHTK.unflatten(2, (segments, -1)).transpose(1, 2).flatten(0, 1)


def unfold(x_FHNK: Tensor, segments: int) -> Tensor:
    """Unfold segments from the batch: [B * S, H, N, K] to [B, H, T, K]."""
    return x_FHNK.unflatten(0, (-1, segments)).transpose(1, 2).flatten(2, 3)


def visible(filled_BC: Tensor, read: int, queries: int, reach: int | None = None) -> Tensor:
    """Which keys of [remembered (C) | own] the next tokens of an open segment may look at.

    Args:
        filled_BC: which remembered rows belong to each batch row's document.
        read: tokens of the segment that have been read already.
        queries: n, the next tokens.
        reach: how many rows back a token looks, including itself; None = all.

    Returns:
        bool [B, 1, n, C + read + n], True = may look; [n, read + n] if there are no remembered rows.
    """
    before = filled_BC.shape[1] + read
    look_nL = torch.ones(queries, before + queries, dtype=torch.bool, device=filled_BC.device).tril(before)
    if reach is not None:
        look_nL = look_nL.triu(before - reach + 1)
    if not filled_BC.shape[1]:
        return look_nL
    there_BL = F.pad(filled_BC, (0, read + queries), value=True)
    return (look_nL & there_BL[:, None])[:, None]


def visible_all(size: int, tokens_B: Tensor, segments: int, tokens: int, reach: int | None = None) -> Tensor:
    """`visible` for S whole segments of N tokens, folded into the batch as `cut` does.

    Args:
        size: C.
        tokens_B: length of each batch row's document before the first of the segments.
    """
    before_BS = tokens_B[:, None] + torch.arange(segments, device=tokens_B.device) * tokens
    return visible(filled(size, before_BS.flatten()), 0, tokens, reach)
