"""A description of Transformer blocks as data, so that one class serves several families of models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from memlab.layers.feed_forward import FeedForwardKind
from memlab.layers.norms import Norm, NormKind, build_norm

Positions = Literal["rope", "transformer_xl", "learned", "none"]
Bias = Literal["qkv", "out", "ffn", "head"]


@dataclass(frozen=True)
class Description:
    """A block, and its place in the backbone.

    Attributes:
        layer: counted from 1.
        layers: number of layers.
        width, heads, kv_heads, head_width: D, H, G and K; G divides H.
        ffn_width: width between the two linear layers of the feed-forward sub-layer.
        dropout: on the output of both sub-layers, during training.
        norm, norm_eps: the normalisation.
        norm_position: `pre`, x + f(norm(x)) (arXiv 2002.04745), or `post`, norm(x + f(x)) (arXiv 1706.03762;
            BERT).
        feed_forward: see `feed_forward.py`.
        biases: the linear layers with a bias. With positions=transformer_xl, u and v replace that of qkv.
        positions: see `positions.py`.
        rope_base: base of the frequencies of rotary positions.
        qk_norm: whether the queries and keys of each head are normalised before they are rotated: by their
            root mean square, with learned scales that all heads share (as in Qwen3).
    """

    layer: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    dropout: float = 0.0
    norm: NormKind = "layer"
    norm_eps: float = 1e-5
    norm_position: Literal["pre", "post"] = "pre"
    feed_forward: FeedForwardKind = "gelu"
    biases: Sequence[Bias] = ("qkv", "ffn", "head")
    positions: Positions = "rope"
    rope_base: float = 10_000.0
    qk_norm: bool = False

    def new_norm(self) -> Norm:
        """A normalisation of this kind."""
        return build_norm(self.norm, self.width, self.norm_eps)
