"""What a pretrained model is: the keys of our backbone, its vocabulary, and what tells it from others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlab.errors import ConfigError
from memlab.files import DamagedFileError, exists, expanded, read_object
from memlab.models.pretrained import families, hub
from memlab.models.pretrained.families.bert import CLASS_TOKEN
from memlab.models.pretrained.gguf_file import GgufFile
from memlab.models.pretrained.reading import Reader
from memlab.models.pretrained.run import MODEL_TYPE, Exported, Run
from memlab.models.pretrained.safetensors_directory import SafetensorsDirectory
from memlab.models.pretrained.source import Source


@dataclass(frozen=True)
class Identity:
    """What tells a pretrained model from others; a checkpoint without its weights stores this.

    Attributes:
        path: where it was found: absolute, or the hub id.
        family: llama, gpt2, bert, or memlab.
        identity: `sha256:..`, the fingerprint of local weights, or `commit:..` on the hub.
    """

    path: str
    family: str
    identity: str


def identity_of(values: Mapping[str, Any]) -> Identity | None:
    """That of the keys of `model`; None = the backbone is not pretrained."""
    if values.get("backbone") != "pretrained":
        return None
    return Identity(values["path"], values["family"], values["identity"])


def source(path: str, revision: str | None = None, weights: bool = False) -> Source:
    """What a path names.

    Args:
        path: a directory, a .gguf or .ckpt file, or a hub id.
        revision: only for a hub id: commit, branch or tag.
        weights: whether the weights are needed; otherwise only the description of a hub id is downloaded.

    Raises:
        ConfigError: there is nothing that memlab reads, or it is not whole.
    """
    place = expanded(path, "backbone.path")
    if not exists(f"backbone.path={path}", place):
        if not hub.is_id(path):
            raise ConfigError(
                f"backbone.path={path}: there is no such directory or file, and a hub id is OWNER/NAME"
            )
        return SafetensorsDirectory(hub.directory(path, revision, weights), path)
    if revision is not None:
        raise ConfigError(
            f"backbone.revision={revision}: only models of the hub have revisions; leave it out"
        )
    if place.is_dir():
        if (place / "config.yaml").is_file():
            return Run.in_directory(place, path)
        found = SafetensorsDirectory(place, path)
        return Exported(place, path) if found.config.get("model_type") == MODEL_TYPE else found
    if place.suffix == ".gguf":
        return GgufFile(place, path)
    if place.suffix == ".ckpt":
        return Run(place, path)
    raise ConfigError(
        f"backbone.path={path}: a file is .gguf or .ckpt; of safetensors, give the directory with config.json"
    )


def describe(path: str, revision: str | None = None) -> dict[str, Any]:
    """The keys of `model` that a pretrained model settles. Quick: no weights are read, no torch is imported.

    (Of a checkpoint of memlab's, torch reads the description.)

    Returns:
        path: absolute, or the hub id; revision: of a hub id, the commit.
        family: llama, gpt2, bert, or memlab.
        identity: see `Identity`.
        vocabulary: ids that its embedding has.
        All other keys are those of `Backbone`; of a model that memlab trained, of the whole model.

    Raises:
        ConfigError: see `source`; or memlab does not read such models.
    """
    found = source(path, revision)
    commit = None
    if isinstance(found, SafetensorsDirectory) and found.place == path and hub.is_id(path):
        local = expanded(path, "backbone.path")
        commit = None if local.exists() else found.directory.name
    if commit is None:
        shapes = found.shapes()  # checks that the files are whole
        known = {"path": str(expanded(path, "backbone.path").absolute()), "revision": None}
        known["identity"] = found.fingerprint()
    else:
        shapes = {}
        known = {"path": path, "revision": commit, "identity": f"commit:{commit}"}
    if isinstance(found, Run | Exported):
        if "backbone.embed.weight" not in shapes:
            raise ConfigError(
                f"backbone.path={path} has only what was trained beside a pretrained model; give a run with "
                "all weights, or export it first"
            )
        if any(".parametrizations." in name for name in shapes):
            raise ConfigError(
                f"backbone.path={path} has low-rank adapters beside its weights (trainer.train=lora); export "
                "it first, which merges them"
            )
        vocabulary = shapes["backbone.embed.weight"][0]
        return {**found.config, **known, "family": MODEL_TYPE, "vocabulary": vocabulary}
    family = families.of(found.config.get("model_type"), path)
    options: dict[str, Any] = families.FAMILIES[family].options(found.config, path)
    vocabulary = Reader(found.config, path).size("vocab_size")
    return {**options, **known, "family": family, "vocabulary": vocabulary}


def parameters(values: Mapping[str, Any]) -> int:
    """How many numbers the weights of a described backbone have, without what memories add."""
    width, layers, heads = values["width"], values["layers"], values["heads"]
    head_width = values.get("head_width") or width // heads
    kv_heads = values.get("kv_heads") or heads
    ffn_width = values.get("ffn_width") or values.get("ffn_multiple", 4) * width
    attention = width * head_width * (2 * heads + 2 * kv_heads)
    feed_forward = width * ffn_width * (3 if values["feed_forward"] == "swiglu" else 2)
    tables = values["vocabulary"] * (1 if values["tied_head"] else 2) + (values.get("max_positions") or 0)
    return int(layers * (attention + feed_forward) + width * tables)


def class_token(place: Path) -> int | None:
    """The id of `[CLS]` in a model's tokenizer; None = it has none, or is not there."""
    try:
        vocabulary = read_object(place / "tokenizer.json")["model"]["vocab"]
        found = vocabulary.get(CLASS_TOKEN) if isinstance(vocabulary, dict) else None
        return found if isinstance(found, int) else None
    except (OSError, DamagedFileError, KeyError, TypeError):
        pass
    try:
        words = (place / "vocab.txt").read_text(encoding="utf-8").splitlines()
        return words.index(CLASS_TOKEN) if CLASS_TOKEN in words else None
    except (OSError, ValueError):
        return None


def folder(values: Mapping[str, Any]) -> Path:
    """The directory or file of a described model on this machine; a hub id is downloaded if need be.

    Tokenizers are read from it.

    Raises:
        ConfigError: see `source`.
    """
    path, revision = values["path"], values.get("revision")
    if hub.is_id(path) and not expanded(path, "backbone.path").exists():
        return hub.directory(path, revision, weights=True)
    return expanded(path, "backbone.path")
