"""The Llama family (arXiv 2302.13971): Llama, SmolLM2, Mistral, Qwen2 and Qwen3.

RMS normalisation before each sub-layer, rotary positions, SwiGLU, grouped-query attention. They differ in
biases (Qwen2: of queries, keys and values), in a normalisation of queries and keys (Qwen3), and in a sliding
window (Mistral 0.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlab.errors import ConfigError
from memlab.models.pretrained.parts import Part, Shape, pairs
from memlab.models.pretrained.reading import Reader, refuse_others

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
PREFIX = "model."
UNUSED = r".*rotary_emb\.inv_freq"

_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# What transformers assumes if config.json lacks the key.
_HEAD_WIDTH, _WINDOW, _EPS, _BASE = {"qwen3": 128}, {"mistral": 4096}, 1e-6, 10_000.0
_SCALINGS = ("linear", "llama3")


def options(config: Mapping[str, Any], place: str) -> dict[str, Any]:
    """The keys of `Backbone`; see `Family`."""
    reader, kind = Reader(config, place), config["model_type"]
    reader.only("hidden_act", "silu", "silu")
    width, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
    biases = []
    if kind == "qwen2" or reader.only("attention_bias", False, False, True):
        biases += ["qkv"] if kind == "qwen2" else ["qkv", "out"]
    if kind == "llama" and reader.only("mlp_bias", False, False, True):
        biases.append("ffn")
    base, scaling = _rope(reader)
    return {
        "layers": reader.size("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": reader.size("num_key_value_heads", heads if kind == "llama" else None),
        "head_width": reader.size("head_dim", _HEAD_WIDTH.get(kind, max(1, width // heads))),
        "ffn_width": reader.size("intermediate_size"),
        "norm": "rms",
        "norm_eps": float(reader.get("rms_norm_eps", _EPS)),
        "norm_position": "pre",
        "feed_forward": "swiglu",
        "biases": biases,
        "qk_norm": kind == "qwen3",
        "positions": "rope",
        "rope_base": base,
        "rope_scaling": scaling,
        "max_positions": None,
        "sliding_window": _window(reader, kind),
        "first_position": "token",
        "tied_head": bool(reader.get("tie_word_embeddings", False)),
    }


def parts(options: Mapping[str, Any]) -> list[Part]:
    """What each parameter of `Backbone` consists of."""
    shape = Shape.of(dict(options))
    found = [
        Part("embed.weight", ("embed_tokens.weight",)),
        Part("norm.weight", ("norm.weight",)),
    ]
    if not options["tied_head"]:
        found.append(Part("head.weight", ("lm_head.weight",)))

    def kinds(of: str) -> tuple[str, ...]:
        return ("weight", "bias") if of in options["biases"] else ("weight",)

    for n in range(shape.layers):
        ours, theirs = f"blocks.{n}", f"layers.{n}"
        projections = tuple(f"{theirs}.self_attn.{name}_proj" for name in "qkv")
        gate_up = (f"{theirs}.mlp.gate_proj", f"{theirs}.mlp.up_proj")
        found += pairs(f"{ours}.memory.norm", f"{theirs}.input_layernorm")
        found += pairs(f"{ours}.memory.attention.qkv", projections, kinds("qkv"), rows=shape.qkv_rows)
        found += pairs(f"{ours}.memory.attention.out", f"{theirs}.self_attn.o_proj", kinds("out"))
        if options.get("qk_norm"):
            for name in ("q_norm", "k_norm"):
                found += pairs(f"{ours}.memory.attention.{name}", f"{theirs}.self_attn.{name}")
        found += pairs(f"{ours}.ffn_norm", f"{theirs}.post_attention_layernorm")
        found += pairs(f"{ours}.ffn.up", gate_up, kinds("ffn"), rows=(shape.ffn_width,) * 2)
        found += pairs(f"{ours}.ffn.down", f"{theirs}.mlp.down_proj", kinds("ffn"))
    return found


def config(options: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
    """The `config.json`; see `Family`."""
    refuse_others(options, "Llama", norm="rms", norm_position="pre", feed_forward="swiglu", positions="rope")
    shape, biases = Shape.of(dict(options)), set(options["biases"])
    kind = _kind(biases, bool(options.get("qk_norm")), options.get("sliding_window"))
    found = {
        "architectures": [f"{_CLASSES[kind]}ForCausalLM"],
        "model_type": kind,
        "num_hidden_layers": shape.layers,
        "hidden_size": options["width"],
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.ffn_width,
        "hidden_act": "silu",
        "rms_norm_eps": options["norm_eps"],
        "rope_theta": options["rope_base"],
        "tie_word_embeddings": options["tied_head"],
        "vocab_size": vocabulary,
    }
    if options.get("rope_scaling"):
        found["rope_scaling"] = dict(options["rope_scaling"])
    if kind == "llama":
        found |= {"attention_bias": "qkv" in biases, "mlp_bias": "ffn" in biases}
    if kind == "mistral":
        found["sliding_window"] = options["sliding_window"]
    return found


def _kind(biases: set[str], qk_norm: bool, window: int | None) -> str:
    """The `model_type` of these blocks."""
    if qk_norm and not biases and window is None:
        return "qwen3"
    if not qk_norm and biases == {"qkv"} and window is None:
        return "qwen2"
    if not qk_norm and not biases and window is not None:
        return "mistral"
    if not qk_norm and window is None and ("qkv" in biases) == ("out" in biases) and "head" not in biases:
        return "llama"
    raise ConfigError(
        f"no model of the Llama family has biases={sorted(biases)}, qk_norm={qk_norm} and "
        f"sliding_window={window} together"
    )


def _rope(reader: Reader) -> tuple[float, dict[str, Any] | None]:
    """The base of the frequencies, and their scaling. transformers 5 writes both into `rope_parameters`."""
    together = reader.get("rope_parameters", None) or {}
    base = together.get("rope_theta", reader.get("rope_theta", _BASE))
    scaling = dict(together or reader.get("rope_scaling", None) or {})
    kind = scaling.pop("rope_type", scaling.pop("type", "default"))
    scaling.pop("rope_theta", None)
    if scaling.pop("partial_rotary_factor", reader.get("partial_rotary_factor", 1.0)) != 1.0:
        raise reader.lacking("a partial_rotary_factor", "positions in all of a head")
    if kind == "default":
        return float(base), None
    if kind not in _SCALINGS:
        raise reader.lacking(f"rope_scaling of the type {kind!r}", f"none, {' and '.join(_SCALINGS)}")
    numbers = {key: float(value) for key, value in scaling.items() if isinstance(value, int | float)}
    return float(base), {"rope_type": kind, **numbers}


def _window(reader: Reader, kind: str) -> int | None:
    """The sliding window of all layers."""
    if kind in ("qwen2", "qwen3"):
        reader.only("use_sliding_window", False, False)
        return None
    if kind == "llama":
        return None
    if "sliding_window" in reader.config:  # null switches it off
        return None if reader.config["sliding_window"] is None else reader.size("sliding_window")
    return _WINDOW[kind]
