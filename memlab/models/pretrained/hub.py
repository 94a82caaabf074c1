"""A model on the Hugging Face hub: found in the hub's cache or downloaded, as a directory."""

from __future__ import annotations

import re
from pathlib import Path

from memlab.errors import ConfigError, first_line
from memlab.models.pretrained.safetensors_directory import CONFIG, SafetensorsDirectory

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WEIGHTS = ("*.safetensors", "model.safetensors.index.json", "*.json", "tokenizer*", "*.txt")


def is_id(path: str) -> bool:
    """Whether this is written like a hub id, OWNER/NAME."""
    return _ID.fullmatch(path) is not None


def directory(path: str, revision: str | None, weights: bool) -> Path:
    """The directory of a model in the hub's cache; its last part is the commit.

    Args:
        revision: commit, branch or tag; None = the main branch.
        weights: whether the weights are needed, or only config.json.

    Raises:
        ConfigError: it is not in the cache, and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download

    whole = list(_WEIGHTS) if weights else [CONFIG]
    try:
        found = Path(snapshot_download(path, revision=revision, allow_patterns=whole, local_files_only=True))
        if weights:  # the hub's cache may have config.json alone
            SafetensorsDirectory(found, path).shapes()
        elif not (found / CONFIG).is_file():
            raise FileNotFoundError(CONFIG)
        return found
    except Exception:  # its errors have no common base
        pass
    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=whole, etag_timeout=5))
    except Exception as error:
        raise ConfigError(
            f"backbone.path={path}: there is no such directory or file, and as a hub id it is neither in the "
            f"hub's cache nor can it be downloaded ({first_line(error)}). Where there is a network: hf "
            f"download {path}; then give its directory"
        ) from None
