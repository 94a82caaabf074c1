"""The tokenizer of a pretrained model: from its directory, its .gguf file, or the Hugging Face hub.

A `tokenizer.json` is read by the `tokenizers` library alone. Anything else (a .gguf file, or a directory with
the older `vocab.json`, `merges.txt`, `vocab.txt` or `tokenizer.model`) is turned into one by `transformers`,
once, and cached. Nothing of a model's author is executed.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from memlab.errors import ConfigError, UserError, first_line
from memlab.files import exists, expanded, why_no_file, write_whole
from memlab.text.corpus import within
from memlab.text.tokenizers import SavedTokenizer

JSON, CONFIG, GGUF = "tokenizer.json", "tokenizer_config.json", ".gguf"
OLDER = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model")
# The special token that begins or separates documents, in the order in which they are looked for: of GPT-2,
# SmolLM and Qwen, Llama 3, Llama 2 and Mistral, Gemma, BERT.
BEGINS = ("<|endoftext|>", "<|begin_of_text|>", "<s>", "<bos>", "[CLS]")
_HUB_SECONDS = 30.0  # for a file of some megabytes
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


class PretrainedTokenizer(SavedTokenizer):
    """The tokenizer of a pretrained model.

    BEGIN is the model's own token for the beginning of a document, so the vocabulary is the model's. The text
    of a special token is encoded like other text.

    Args:
        given: what the user gave, for messages.
        file: a `tokenizer.json`.
        config: its `tokenizer_config.json`; {} = there is none.

    Raises:
        UserError: it is not a tokenizer, or has no token that begins a document.
    """

    def __init__(self, given: str, file: Path, config: dict[str, Any]) -> None:
        self._read(f"task.tokenizer={given}", file)
        special = {
            token.content: i
            for i, token in self.tokenizer.get_added_tokens_decoder().items()
            if token.special
        }
        own = [_content(config.get(f"{name}_token")) for name in ("bos", "cls", "eos")]
        begin = next((special[name] for name in (*BEGINS, *own) if name in special), None)
        if begin is None:
            raise UserError(
                f"{self.name}: it has no special token that begins a document, such as {', '.join(BEGINS)}"
            )
        self.begin = begin
        added = self.tokenizer.encode("a", add_special_tokens=True).ids
        plain = self.tokenizer.encode("a", add_special_tokens=False).ids
        self.begins_texts = added == [begin, *plain]
        self.tokenizer.encode_special_tokens = True


def check(given: str, also: tuple[str, ...]) -> None:
    """Check what can be said of a tokenizer without reading it.

    Args:
        given: value of `task.tokenizer`, which is none of `also`.
        also: the other values that the task accepts.

    Raises:
        ConfigError: it is nothing that `opened` reads.
    """
    allowed = (
        f"{', '.join(also)}, pretrained (the backbone's own), the path of a saved tokenizer.json, or a "
        "pretrained model: its directory, .gguf file or id on the hub"
    )
    if given == "pretrained":
        raise ConfigError(
            "task.tokenizer=pretrained is the tokenizer of backbone=pretrained, which is not chosen; choose "
            "it, or give task.tokenizer the path of a model"
        )
    place = expanded(given, "task.tokenizer")
    wrong = why_no_file(place)
    if wrong is None or _is_hub_id(given):
        return
    if exists(f"task.tokenizer={given}", place) and place.is_dir():
        if any((place / name).is_file() for name in (JSON, *OLDER)):
            return
        wrong = f"there is no {JSON} in this directory"
    raise ConfigError(f"task.tokenizer={given}: {wrong}; allowed are {allowed}")


def opened(given: str, cache: Path) -> SavedTokenizer:
    """The tokenizer that `task.tokenizer` names: that of a model, or a saved `tokenizer.json`.

    Args:
        cache: directory for what `transformers` makes of other files.

    Raises:
        UserError: it cannot be had, or read.
    """
    place = expanded(given, "task.tokenizer")
    if _is_hub_id(given):
        file, config = _from_hub(given)
        return PretrainedTokenizer(given, file, _json(config))
    if place.is_dir():
        file = place / JSON
        return PretrainedTokenizer(
            given, file if file.is_file() else _converted(given, place, cache), _json(place / CONFIG)
        )
    if place.name.lower().endswith(GGUF):
        return PretrainedTokenizer(given, _converted(given, place, cache), {})
    return SavedTokenizer(given)


def _is_hub_id(given: str) -> bool:
    """Whether it can only be OWNER/NAME on the hub."""
    return (
        _HUB_ID.fullmatch(given) is not None
        and not given.lower().endswith((".json", GGUF))
        and not exists(f"task.tokenizer={given}", Path(given))
    )


def _content(token: Any) -> str | None:
    """A token of `tokenizer_config.json`, which has its text or an object."""
    return token.get("content") if isinstance(token, dict) else token


def _json(file: Path | None) -> dict[str, Any]:
    if file is None or not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None
    return found if isinstance(found, dict) else {}


def _converted(given: str, source: Path, cache: Path) -> Path:
    """The `tokenizer.json` that `transformers` makes of a .gguf file or of a directory's older files."""
    from filelock import FileLock

    files = [source / name for name in OLDER] if source.is_dir() else [source]
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file()]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()[:16]
    target = cache / "tokenizers" / f"pretrained-{key}" / JSON
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target.parent}.lock"):
            if not target.is_file():
                write_whole(target, _by_transformers(given, source))
    except OSError as error:
        raise UserError(f"task.cache_dir: {target} cannot be written: {error.strerror}") from None
    return target


def _by_transformers(given: str, source: Path) -> str:
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UserError(
            f"task.tokenizer={given}: it is no {JSON}, so reading it takes the package transformers: "
            "pip install 'memlab[pretrained]'"
        ) from None
    where = (source, {}) if source.is_dir() else (source.parent, {"gguf_file": source.name})
    try:
        made = AutoTokenizer.from_pretrained(
            str(where[0]), **where[1], trust_remote_code=False, local_files_only=True
        )
        return str(made.backend_tokenizer.to_str())
    except Exception as error:  # the library raises anything
        raise UserError(
            f"task.tokenizer={given}: transformers finds no tokenizer in it: {first_line(error)}"
        ) from None


def _from_hub(given: str) -> tuple[Path, Path | None]:
    """`tokenizer.json` and `tokenizer_config.json` of a model on the hub, or in the hub's cache."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import (
        EntryNotFoundError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    def get(name: str) -> Path:
        if isinstance(found := try_to_load_from_cache(given, name), str):
            return Path(found)
        return Path(within(_HUB_SECONDS, lambda: hf_hub_download(given, name)))

    try:
        file = get(JSON)
    except Exception as error:  # its network errors have no common base
        neither = "there is no such file or directory, and the Hugging Face hub"
        if isinstance(error, RepositoryNotFoundError):
            wrong = f"{neither} has no such model, or it is private"
        elif isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            wrong = f"this model on the hub has no {JSON}"
        else:
            wrong = f"{neither} cannot be reached ({first_line(error)})"
        raise UserError(
            f"task.tokenizer={given}: {wrong}. Download the model where there is a network, and give its "
            "directory"
        ) from None
    try:
        return file, get(CONFIG)
    except Exception:  # most have what is needed in tokenizer.json
        return file, None
