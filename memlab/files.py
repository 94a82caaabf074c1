"""Files that are there whole or not at all, and paths that a user gave."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from memlab.errors import UserError


def write_whole(target: Path, text: str) -> None:
    """Write a file in one piece: after a kill or on a full disk the old content is there, or the new one.

    Raises:
        OSError: it cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def expanded(path: str, key: str) -> Path:
    """A path that a user gave for a key; ~ is the home directory.

    Raises:
        UserError: it begins with ~NAME, and there is no such user.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = path.partition("/")[0]
        raise UserError(f"{key}={path}: no home directory is known for {user}") from None


def why_no_file(path: Path) -> str | None:
    """Why a path is not that of a file, as the rest of a sentence; None = it is."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:  # too long, not allowed, a link to itself
        return f"it cannot be looked at ({error.strerror})"
    except ValueError:
        return "a path holds no zero character"
    if stat.S_ISDIR(mode):
        return "it is a directory"
    return None if stat.S_ISREG(mode) else "it is not a regular file"
