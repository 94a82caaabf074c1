"""The spectrum of the attention that each key receives over time, averaged with exponential decay.

    X_f(w) = | sum_u hann(u) a_(hop f + u) exp(-2 pi i u w / n_fft) |      frame f, w = 0 .. n_fft / 2
    e  <-  decay^hop e + (1 - decay^hop) X_f                               for each frame in turn

a_q is what query q gives to a key. Successive frames overlap by C = n_fft - hop queries, so a call begins
with the last C of the call before it: several calls compute what one does.

Shapes: B batch, G key-value heads, L keys, n new queries, T = C + n, F = n_fft / 2 + 1 frequencies.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


@torch.no_grad()
def mean_spectrum_naive(
    attention_BGTL: Tensor, mean_BGLF: Tensor, n_fft: int, hop: int, decay: float
) -> Tensor:
    """The formula as it stands, number by number."""
    mean_BGLF = mean_BGLF.clone()
    for start in range(0, attention_BGTL.shape[2] - n_fft + 1, hop):
        for frequency in range(n_fft // 2 + 1):
            real = imaginary = torch.zeros_like(mean_BGLF[..., 0])
            for u in range(n_fft):
                windowed = (0.5 - 0.5 * math.cos(2 * math.pi * u / n_fft)) * attention_BGTL[:, :, start + u]
                real = real + windowed * math.cos(2 * math.pi * u * frequency / n_fft)
                imaginary = imaginary - windowed * math.sin(2 * math.pi * u * frequency / n_fft)
            magnitude = (real**2 + imaginary**2).sqrt()
            mean_BGLF[..., frequency] = decay**hop * mean_BGLF[..., frequency] + (1 - decay**hop) * magnitude
    return mean_BGLF


@torch.no_grad()
def mean_spectrum(attention_BGTL: Tensor, mean_BGLF: Tensor, n_fft: int, hop: int, decay: float) -> Tensor:
    """The running mean of the spectra, [B, G, L, F], after n more queries. Without gradient.

    All frequencies of a frame are one matrix product; one frame at a time is held.

    Args:
        attention_BGTL: attention weights of the C queries before and the n new ones; 0 where there was no
            query or no key yet. n is a multiple of `hop`.
        mean_BGLF: the mean so far; 0 for new keys.
        n_fft, hop: queries of a frame, even, and from one frame to the next.
        decay: of the mean, for each query.
    """
    basis_UF = _basis(n_fft, mean_BGLF.dtype, mean_BGLF.device)
    for start in range(0, attention_BGTL.shape[2] - n_fft + 1, hop):
        frame_BGLU = attention_BGTL[:, :, start : start + n_fft].transpose(-1, -2).to(mean_BGLF.dtype)
        real, imaginary = (frame_BGLU @ basis_UF).chunk(2, dim=-1)
        mean_BGLF = torch.lerp(torch.hypot(real, imaginary).to(mean_BGLF.dtype), mean_BGLF, decay**hop)
    return mean_BGLF


def _basis(n_fft: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Cosines and sines of all frequencies, under a periodic Hann window: [n_fft, 2 F]."""
    u_U = torch.arange(n_fft, dtype=torch.float64)
    angle_UF = 2 * math.pi / n_fft * (u_U[:, None] * torch.arange(n_fft // 2 + 1) % n_fft)
    hann_U1 = 0.5 - 0.5 * (2 * math.pi / n_fft * u_U[:, None]).cos()
    return torch.cat([hann_U1 * angle_UF.cos(), hann_U1 * angle_UF.sin()], dim=1).to(device, dtype)
