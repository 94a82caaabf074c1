"""`data.json`: which files a run reads, so that it does not go on with others."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from memlab.errors import UserError
from memlab.files import write_whole
from memlab.text.fingerprint import changes

NAME = "data.json"
_TOLD = 3  # changes that a message lists


def write(directory: Path, data: dict[str, Any]) -> None:
    """Note what a run reads, as `Task.data` says it; nothing if it reads no files."""
    if data:
        write_whole(directory / NAME, json.dumps(data, indent=1) + "\n")


def check(directory: Path, data: dict[str, Any]) -> None:
    """Compare what a run is about to read with what it began with.

    Raises:
        UserError: it is not the same.
    """
    file = directory / NAME
    if not data:
        return
    try:
        before = json.loads(file.read_text(encoding="utf-8"))
        files, revision, tokenizer = before["files"], before["revision"], before["tokenizer"]
    except FileNotFoundError:
        print(
            f"memlab: {directory} does not say which files it read ({NAME} is missing); it goes on with "
            "those that are there",
            file=sys.stderr,
        )
        return
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{file} cannot be read, which says what files the run reads; remove it if they are as they were"
        ) from None
    if revision != data["revision"]:
        raise UserError(
            f"the dataset has changed since the run in {directory} began: it is at revision "
            f"{data['revision']}; give task.source_revision={revision}"
        )
    found = changes(files, data["files"])
    if tokenizer != data["tokenizer"]:
        found.append("task.tokenizer is another one")
    if found:
        more = f", and {len(found) - _TOLD} more changes" if len(found) > _TOLD else ""
        raise UserError(
            f"the text has changed since the run in {directory} began: {'; '.join(found[:_TOLD])}{more}. "
            "Put it back as it was, or start a new run"
        )
