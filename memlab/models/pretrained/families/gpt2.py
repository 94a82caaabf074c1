"""GPT-2 (Radford et al. 2019): learned positions, layer normalisation before each sub-layer, tied head.

Its linear layers are `Conv1D`, which store the transposed matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlab.errors import ConfigError
from memlab.models.pretrained.parts import Part, pairs
from memlab.models.pretrained.reading import Reader, refuse_others

MODEL_TYPES = ("gpt2",)
PREFIX = "transformer."
UNUSED = r"h\.\d+\.attn\.(bias|masked_bias)"  # the causal mask, which old checkpoints store

_BOTH = ("weight", "bias")
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def options(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys of `Backbone`; see `Family`."""
    reader = Reader(config, place)
    reader.only("scale_attn_weights", True, True)
    reader.only("scale_attn_by_inverse_layer_idx", False, False)
    reader.only("add_cross_attention", False, False)
    width, heads = reader.size("n_embd", 768), reader.size("n_head", 12)
    return {
        "layers": reader.size("n_layer", 12),
        "width": width,
        "heads": heads,
        "kv_heads": heads,
        "head_width": width // heads,
        "ffn_width": reader.size("n_inner", 4 * width),
        "norm": "layer",
        "norm_eps": float(reader.get("layer_norm_epsilon", 1e-5)),
        "norm_position": "pre",
        "feed_forward": _ACTIVATIONS[reader.only("activation_function", "gelu_new", *_ACTIVATIONS)],
        "biases": ["qkv", "out", "ffn"],
        "qk_norm": False,
        "positions": "learned",
        "rope_scaling": None,
        "max_positions": reader.size("n_positions", 1024),
        "sliding_window": None,
        "first_position": "row",
        "tied_head": bool(reader.get("tie_word_embeddings", True)),
    }


def parts(options: Mapping[str, Any]) -> list[Part]:
    """What each parameter of `Backbone` consists of."""
    found = [
        Part("embed.weight", ("wte.weight",)),
        Part("learned_positions.weight", ("wpe.weight",)),
        *pairs("norm", "ln_f", _BOTH),
    ]
    if not options["tied_head"]:
        found.append(Part("head.weight", ("lm_head.weight",)))
    for n in range(options["layers"]):
        ours, theirs = f"blocks.{n}", f"h.{n}"
        found += pairs(f"{ours}.memory.norm", f"{theirs}.ln_1", _BOTH)
        found += pairs(f"{ours}.memory.attention.qkv", f"{theirs}.attn.c_attn", _BOTH, transposed=True)
        found += pairs(f"{ours}.memory.attention.out", f"{theirs}.attn.c_proj", _BOTH, transposed=True)
        found += pairs(f"{ours}.ffn_norm", f"{theirs}.ln_2", _BOTH)
        found += pairs(f"{ours}.ffn.up", f"{theirs}.mlp.c_fc", _BOTH, transposed=True)
        found += pairs(f"{ours}.ffn.down", f"{theirs}.mlp.c_proj", _BOTH, transposed=True)
    return found


def config(options: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The `config.json`; see `Family`."""
    refuse_others(options, "GPT-2", norm="layer", norm_position="pre", positions="learned", qk_norm=False)
    if options["feed_forward"] not in _ACTIVATIONS.values():
        raise ConfigError(f"GPT-2 has no feed_forward={options['feed_forward']}")
    if options["kv_heads"] not in (None, options["heads"]) or set(options["biases"]) != {"qkv", "out", "ffn"}:
        raise ConfigError("GPT-2 has as many key-value heads as heads, and biases=[qkv, out, ffn]")
    if options["head_width"] * options["heads"] != options["width"]:
        raise ConfigError("GPT-2's heads divide the width among them")
    activation = {"gelu_tanh": "gelu_new", "gelu": "gelu"}[options["feed_forward"]]
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": options["layers"],
        "n_embd": options["width"],
        "n_head": options["heads"],
        "n_inner": options["ffn_width"],
        "n_positions": options["max_positions"],
        "activation_function": activation,
        "layer_norm_epsilon": options["norm_eps"],
        "tie_word_embeddings": options["tied_head"],
        "vocab_size": vocabulary,
        "bos_token_id": None,
        "eos_token_id": None,
    }
