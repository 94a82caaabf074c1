"""Write a model to a directory: as transformers' own where it is one of theirs, else as memlab's."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.files import write_whole
from memlab.memories.full import Full
from memlab.models.base import Model
from memlab.models.decoder import Decoder
from memlab.models.pretrained import families
from memlab.models.pretrained.parts import Part
from memlab.models.pretrained.run import MODEL_TYPE
from memlab.models.pretrained.safetensors_directory import CONFIG, WHOLE
from memlab.models.pretrained.source import extra
from memlab.version import __version__

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "generation_config.json",
)


def theirs(model: Model, values: Mapping[str, Any]) -> str | None:
    """The family of transformers that a model belongs to; None = it has a memory, or other blocks.

    Args:
        values: the keys of `model`.
    """
    if not isinstance(model, Decoder) or model.memory != "on" or model.tokens.reads or model.tokens.writes:
        return None
    if not all(type(memory) is Full for memory in model.backbone.memories):
        return None
    described = options(model, values)
    for name, family in families.FAMILIES.items():
        if hasattr(family, "config"):
            with contextlib.suppress(ConfigError):
                family.config(described, 1)
                return name
    return None


def options(model: Model, values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the backbone, with sizes as numbers."""
    backbone = model.backbone
    known = {
        "feed_forward": "gelu",
        "norm": "layer",
        "norm_eps": 1e-5,
        "norm_position": "pre",
        "biases": ["qkv", "ffn", "head"],
        "positions": "rope",
        "rope_base": 10_000.0,
        "rope_scaling": None,
        "max_positions": None,
        "qk_norm": False,
        "sliding_window": None,
        "tied_head": False,
    }
    return {
        **{key: values.get(key, default) for key, default in known.items()},
        "layers": len(backbone.blocks),
        "width": backbone.width,
        "heads": backbone.heads,
        "kv_heads": backbone.kv_heads,
        "head_width": backbone.head_width,
        "ffn_width": backbone.blocks[0].ffn.down.in_features,
    }


def write_theirs(model: Model, values: Mapping[str, Any], family: str, folder: Path) -> None:
    """Write config.json and model.safetensors that transformers opens.

    Raises:
        OSError: a file cannot be written.
    """
    described = options(model, values)
    ours = dict(model.backbone.named_parameters())
    config = families.FAMILIES[family].config(described, len(ours["embed.weight"]))
    tensors: dict[str, Tensor] = {}
    for part in families.FAMILIES[family].parts(described):
        for name, tensor in zip(part.theirs, _split(part, ours[part.ours]), strict=True):
            whole = name if name.startswith("lm_head.") else families.FAMILIES[family].PREFIX + name
            tensors[whole] = (tensor.T if part.transposed else tensor).detach().contiguous().cpu()
    dtype = str(ours["embed.weight"].dtype).removeprefix("torch.")
    _write(folder, {**config, "torch_dtype": dtype}, tensors)


def write_ours(model: Model, config: Mapping[str, Any], step: int, folder: Path) -> None:
    """Write config.json and model.safetensors that `memlab.load` opens.

    Args:
        config: the whole configuration of the run.
        step: optimizer steps of the weights.

    Raises:
        OSError: a file cannot be written.
    """
    tensors = {name: p.detach().contiguous().cpu() for name, p in model.named_parameters()}  # tied ones once
    own = {"version": __version__, "step": step, "config": dict(config)}
    _write(folder, {"model_type": MODEL_TYPE, "memlab": own}, tensors)


def copy_tokenizer(place: Path, folder: Path) -> bool:
    """Copy the files of a model's tokenizer from its directory; returns whether there are any."""
    found = [place / name for name in _TOKENIZER if (place / name).is_file()] if place.is_dir() else []
    for file in found:
        shutil.copyfile(file, folder / file.name)
    return bool(found)


def _split(part: Part, parameter: Tensor) -> tuple[Tensor, ...]:
    return parameter.split(list(part.rows)) if part.rows else (parameter,)


@torch.no_grad()
def _write(folder: Path, config: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    try:
        from safetensors.torch import save_file
    except ImportError:
        raise extra("safetensors", str(folder)) from None
    partial = folder / f"{WHOLE}.partial"
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.replace(folder / WHOLE)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    write_whole(folder / CONFIG, json.dumps(config, indent=2) + "\n")  # last: without it there is no model
