"""BERT (arXiv 1810.04805) and MiniLM: learned positions, normalisation after each sub-layer, both directions.

A segment is one sentence: the vector of token type 0 is added to every position. The pooler, and the head of
masked language modelling except for its bias, are no part of our blocks; our head is the embedding's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlab.models.pretrained.parts import Part, Shape, pairs
from memlab.models.pretrained.reading import Reader

MODEL_TYPES = ("bert",)
PREFIX = "bert."
UNUSED = r"pooler\..*|embeddings\.position_ids|cls\.(?!predictions\.bias$).*|classifier\..*"
CLASS_TOKEN = "[CLS]"

_BOTH = ("weight", "bias")
_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}


def options(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys of `Backbone`; see `Family`."""
    reader = Reader(config, place)
    reader.only("position_embedding_type", "absolute", "absolute")
    reader.only("add_cross_attention", False, False)
    width, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    return {
        "layers": reader.size("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "head_width": width // heads,
        "ffn_width": reader.size("intermediate_size"),
        "norm": "layer",
        "norm_eps": float(reader.get("layer_norm_eps", 1e-12)),
        "norm_position": "post",
        "feed_forward": _ACTIVATIONS[reader.only("hidden_act", "gelu", *_ACTIVATIONS)],
        "biases": ["qkv", "out", "ffn", "head"],
        "qk_norm": False,
        "positions": "learned",
        "rope_scaling": None,
        "max_positions": reader.size("max_position_embeddings", 512),
        "sliding_window": None,
        "first_position": "row",
        "tied_head": True,
    }


def parts(options: Mapping[str, Any]) -> list[Part]:
    """What each parameter of `Backbone` consists of."""
    shape, types = Shape.of(dict(options)), "embeddings.token_type_embeddings.weight"
    positions = ("embeddings.position_embeddings.weight",)
    found = [
        Part("embed.weight", ("embeddings.word_embeddings.weight",)),
        Part("learned_positions.weight", positions, added=types),
        *pairs("embed_norm", "embeddings.LayerNorm", _BOTH),
        Part("head.bias", ("cls.predictions.bias",), may_lack=True),
    ]
    for n in range(shape.layers):
        ours, theirs = f"blocks.{n}", f"encoder.layer.{n}"
        qkv = tuple(f"{theirs}.attention.self.{name}" for name in ("query", "key", "value"))
        found += pairs(f"{ours}.memory.attention.qkv", qkv, _BOTH, rows=shape.qkv_rows)
        found += pairs(f"{ours}.memory.attention.out", f"{theirs}.attention.output.dense", _BOTH)
        found += pairs(f"{ours}.memory_norm", f"{theirs}.attention.output.LayerNorm", _BOTH)
        found += pairs(f"{ours}.ffn.up", f"{theirs}.intermediate.dense", _BOTH)
        found += pairs(f"{ours}.ffn.down", f"{theirs}.output.dense", _BOTH)
        found += pairs(f"{ours}.ffn_norm", f"{theirs}.output.LayerNorm", _BOTH)
    return found
