"""Normalisation of a row: by mean and variance (arXiv 1607.06450), or root mean square (arXiv 1910.07467)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = nn.LayerNorm | nn.RMSNorm
NormKind = Literal["layer", "rms"]


def build_norm(kind: NormKind, width: int, eps: float) -> Norm:
    """A normalisation for rows of this width."""
    return nn.LayerNorm(width, eps=eps) if kind == "layer" else nn.RMSNorm(width, eps=eps)


def fold_norm(
    norm: Norm | None, x_BTD: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fold the learned scale and shift of a normalisation into the linear layer after it.

    Args:
        norm: the normalisation, or None.
        weight, bias: of the linear layer, [P, D] and [P].

    Returns:
        The normalised rows [B, T, D] without learned scale and shift, and the weight and bias to use with
        them: linear(norm(x)) = linear'(normalised x).
    """
    no_bias = weight.new_zeros(len(weight)) if bias is None else bias
    if norm is None:
        return x_BTD, weight, no_bias
    folded = weight * norm.weight
    if isinstance(norm, nn.RMSNorm):
        normalised = F.rms_norm(x_BTD, norm.normalized_shape, eps=norm.eps)
        return normalised, folded, no_bias
    shift = weight @ norm.bias
    normalised = F.layer_norm(x_BTD, norm.normalized_shape, eps=norm.eps)
    return normalised, folded, shift if bias is None else shift + bias
