"""`data.json`: which files a run reads, so that it never silently continues with others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from memlab.errors import UserError
from memlab.files import write_whole
from memlab.terminal.plain import printable
from memlab.text.fingerprint import changes

NAME = "data.json"
_LISTED = 3  # changes that a message lists


def write(directory: Path, data: dict[str, Any]) -> None:
    """Record what a run reads, as `Task.data` describes it; nothing if it reads no files."""
    if data:
        write_whole(directory / NAME, json.dumps(data, indent=1) + "\n")


def check(directory: Path, data: dict[str, Any]) -> None:
    """Compare what a run is about to read with what it began with.

    Raises:
        UserError: it is not the same.
    """
    if not data:
        return
    if not (directory / NAME).exists():
        print(
            f"memlab: {directory} does not say which files it read ({NAME} is missing); it continues "
            "with those that are there",
            file=sys.stderr,
        )
    elif changed := _changed(directory, data):
        raise UserError(f"{changed[0]}. {changed[1]}")


def identity(text: str | None) -> str | None:
    """What a run reads, from the content of its `data.json`: the same for the same text and tokenizer,
    wherever the files are and whatever their names; None = not known.
    """
    try:
        record = json.loads(text or "")
        files = [[hashed or (Path(name).name, size)] for name, (size, _, hashed) in record["files"].items()]
        return json.dumps([sorted(files, key=str), record["revision"], record["tokenizer"]])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def warn(directory: Path, data: dict[str, Any]) -> None:
    """Warn in one line if what is read to evaluate a run is not what it was trained on."""
    if data and (directory / NAME).exists() and (changed := _changed(directory, data)):
        print(f"memlab: warning: {printable(changed[0])}; figures may be of another text", file=sys.stderr)


def _changed(directory: Path, data: dict[str, Any]) -> tuple[str, str] | None:
    """What has changed since a run began, and what to do; None = nothing."""
    file = directory / NAME
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        files, revision, tokenizer = before["files"], before["revision"], before["tokenizer"]
        if revision != data["revision"]:
            return (
                f"the dataset has changed since the run in {directory} began: it is at revision "
                f"{data['revision']}",
                f"Give task.source_revision={revision}",
            )
        found = changes(files, data["files"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return (
            f"{file} cannot be read, which says what files the run reads",
            "Remove it if they are as they were",
        )
    if tokenizer != data["tokenizer"]:
        found.append("task.tokenizer is another one")
    if not found:
        return None
    more = f", and {len(found) - _LISTED} more changes" if len(found) > _LISTED else ""
    return (
        f"the text has changed since the run in {directory} began: {'; '.join(found[:_LISTED])}{more}",
        "Put it back as it was, or start a new run",
    )
