"""A .gguf file of the Llama family, as llama.cpp uses it: header and quantised tensors in one file.

The header is read here, since the package `gguf` makes an object of each of the vocabulary's entries; the
package dequantises. Of Llama itself, llama.cpp stores the rows of queries and keys in another order (pairs of
rotated dimensions next to each other), which is undone. Format: ggml's docs/gguf.md, versions 2 and 3.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from memlab.errors import ConfigError
from memlab.models.pretrained.source import Source, extra

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# general.architecture -> model_type. Mistral is "llama" there.
_ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
# What stands after the architecture's name -> key of config.json
_KEYS = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "context_length": "max_position_embeddings",
}
_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


@dataclass(frozen=True)
class _Stored:
    """A tensor in the file: shape, ggml's number of its type, its first byte in the file, and its bytes."""

    shape: tuple[int, ...]
    kind: int
    start: int
    size: int


class GgufFile(Source):
    """Weights in a .gguf file.

    Raises:
        ConfigError: it is no such file, not whole, or of an architecture that memlab does not read.
    """

    def __init__(self, file: Path, place: str) -> None:
        self.file, self.place = file, place
        try:
            import gguf
        except ImportError:
            raise extra("gguf", place) from None
        self._sizes = {int(kind): sizes for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
        try:
            with file.open("rb") as opened:
                self.facts, self._stored = self._header(opened)
        except (struct.error, UnicodeDecodeError, KeyError, OverflowError, MemoryError):
            raise ConfigError(f"backbone.path={place} is no .gguf file, or the beginning of one") from None
        end = max((tensor.start + tensor.size for tensor in self._stored.values()), default=0)
        if (size := file.stat().st_size) < end:
            raise ConfigError(f"backbone.path={place} has {size:,} bytes of {end:,}; download it again")
        self.architecture = self.facts.get("general.architecture")
        if self.architecture not in _ARCHITECTURES:
            raise ConfigError(
                f"backbone.path={place} is a .gguf file of the architecture {self.architecture!r}; memlab "
                f"reads {', '.join(_ARCHITECTURES)} from .gguf files, and other families from safetensors"
            )
        if "rope_freqs.weight" in self._stored:
            raise ConfigError(
                f"backbone.path={place} scales rotary positions by a table (rope_freqs), which memlab does "
                "not read from .gguf files; use the model's safetensors"
            )
        self.config = self._config()

    @property
    def files(self) -> Sequence[Path]:
        return [self.file]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Names as in a directory of transformers -> names in the file."""
        found = {}
        for name in self._stored:
            whole, _, kind = name.rpartition(".")
            if whole.startswith("blk."):
                _, layer, part = whole.split(".", 2)
                found[f"model.layers.{layer}.{_TENSORS.get(part, part)}.{kind}"] = name
            else:
                found[f"{_OUTSIDE.get(whole, whole)}.{kind}"] = name
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self._stored[own].shape for name, own in self._names.items()}

    def read(self, name: str) -> Any:
        """A tensor, dequantised to float32."""
        import gguf
        import numpy as np
        import torch

        tensor = self._stored[self._names[name]]
        raw = np.fromfile(self.file, dtype=np.uint8, count=tensor.size, offset=tensor.start)
        rows = raw.reshape(*tensor.shape[:-1], -1)
        values = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType(tensor.kind))
        weight = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)).reshape(tensor.shape)
        heads = {
            "q_proj": self.config["num_attention_heads"],
            "k_proj": self.config.get("num_key_value_heads") or self.config["num_attention_heads"],
        }
        part = name.split(".")[-2]
        if self.architecture != "llama" or part not in heads:
            return weight
        # [heads, pairs, 2, ..] -> [heads, 2, pairs, ..]
        return weight.unflatten(0, (heads[part], -1, 2)).transpose(1, 2).reshape(tensor.shape)

    def _config(self) -> dict[str, Any]:
        """What config.json would have."""
        own = f"{self.architecture}."
        config = {key: self.facts[own + name] for name, key in _KEYS.items() if own + name in self.facts}
        config |= {
            "model_type": _ARCHITECTURES[str(self.architecture)],
            "tie_word_embeddings": "output.weight" not in self._stored,
        }
        if "token_embd.weight" in self._stored:
            config["vocab_size"] = self._stored["token_embd.weight"].shape[0]
        scaling = self.facts.get(f"{own}rope.scaling.type", "none")
        if scaling != "none":
            config["rope_scaling"] = {
                "rope_type": scaling,
                "factor": self.facts.get(f"{own}rope.scaling.factor", 1.0),
            }
        return config

    def _header(self, file: BinaryIO) -> tuple[dict[str, Any], dict[str, _Stored]]:
        """The key-value pairs without their arrays, and the tensors."""
        if file.read(4) != b"GGUF":
            raise ConfigError(f"backbone.path={self.place} is no .gguf file")
        version, tensors, pairs = struct.unpack("<IQQ", file.read(20))
        if version not in (2, 3):
            raise ConfigError(
                f"backbone.path={self.place} is a .gguf file of version {version}; 2 and 3 are read"
            )
        facts = {}
        for _ in range(pairs):
            key = _text(file)
            (kind,) = struct.unpack("<I", file.read(4))
            facts[key] = _value(file, kind)
        listed = []
        for _ in range(tensors):
            name = _text(file)
            (dimensions,) = struct.unpack("<I", file.read(4))
            *sizes, kind, offset = struct.unpack(f"<{dimensions}QIQ", file.read(8 * dimensions + 12))
            listed.append((name, tuple(reversed(sizes)), kind, offset))
        alignment = facts.get("general.alignment", 32)
        begin = -(-file.tell() // alignment) * alignment
        stored = {}
        for name, shape, kind, offset in listed:
            numbers, size = self._sizes[kind]  # a block of so many numbers has so many bytes
            stored[name] = _Stored(shape, kind, begin + offset, math.prod(shape) // numbers * size)
        return facts, stored


def _text(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    """One value; of an array its number of elements."""
    if kind == _STRING:
        return _text(file)
    if kind != _ARRAY:
        code = _SCALARS[kind]
        (value,) = struct.unpack(f"<{code}", file.read(struct.calcsize(code)))
        return float(f"{value:.7g}") if code == "f" else value  # 1e-05, not the float32 next to it
    element, count = struct.unpack("<IQ", file.read(12))
    if element in _SCALARS:
        file.seek(struct.calcsize(_SCALARS[element]) * count, 1)
    else:
        for _ in range(count):
            if element == _STRING:
                (length,) = struct.unpack("<Q", file.read(8))
                file.seek(length, 1)
            else:
                _value(file, element)
    return count
