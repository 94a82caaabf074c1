"""The averaged spectrum of attention: against torch's STFT, and read in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.ops.spectrum import mean_spectrum

DECAY = 0.99


def attention(queries: int, keys: int, seed: int = 0) -> Tensor:
    """Causal attention weights [2, 3, n, L]: the last query is the newest key's own."""
    scores = torch.randn(
        2, 3, queries, keys, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    may_look = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    return scores.masked_fill(~may_look, -torch.inf).softmax(-1)


@pytest.mark.parametrize(("n_fft", "hop"), [(32, 16), (8, 4), (8, 2), (6, 6)])
def test_frames_are_those_of_a_short_time_fourier_transform(n_fft: int, hop: int) -> None:
    weights = F.pad(attention(4 * hop, 4 * hop + 3), (0, 0, n_fft - hop, 0))
    series = weights.transpose(-1, -2).flatten(0, 2)
    window = torch.hann_window(n_fft, periodic=True, dtype=torch.float64)
    frames = torch.stft(series, n_fft, hop, window=window, center=False, return_complex=True).abs()
    expected = torch.zeros(2, 3, 4 * hop + 3, n_fft // 2 + 1).double()
    for frame in frames.unflatten(0, (2, 3, -1)).unbind(-1):
        expected = DECAY**hop * expected + (1 - DECAY**hop) * frame
    found = mean_spectrum(weights, torch.zeros_like(expected), n_fft, hop, DECAY)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pieces", [[8, 16, 8], [4] * 8, [32]])
def test_read_in_pieces_it_is_the_same(pieces: list[int]) -> None:
    """Keys that arrive with a later piece received nothing before: causal attention."""
    n_fft, hop = 12, 4
    weights = F.pad(attention(32, 32), (0, 0, n_fft - hop, 0))
    expected = mean_spectrum(weights, torch.zeros(2, 3, 32, n_fft // 2 + 1).double(), n_fft, hop, DECAY)
    mean = torch.zeros(2, 3, 0, n_fft // 2 + 1).double()
    at = 0
    for piece in pieces:
        mean = F.pad(mean, (0, 0, 0, piece))
        rows = weights[:, :, at : at + n_fft - hop + piece, : at + piece]
        mean = mean_spectrum(rows, mean, n_fft, hop, DECAY)
        at += piece
    torch.testing.assert_close(mean, expected, rtol=0, atol=1e-15)
