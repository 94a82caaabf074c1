"""Write files whole or not at all, explain what is wrong with others, and check paths that a user gave."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from memlab.errors import UserError

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)
_LONGEST = 255  # bytes that a file's name may have


class DamagedFileError(UserError):
    """A file that memlab wrote is damaged: empty, cut off, or altered."""


def write_whole(target: Path, text: str) -> None:
    """Write a file whole: after a kill, a power cut or on a full disk, it has its old or its new content.

    Raises:
        OSError: it cannot be written.
    """
    partial = target.with_name(target.name + ".partial")
    try:
        partial.unlink(missing_ok=True)  # a link would lead elsewhere
        with partial.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def is_file_name(name: str) -> bool:
    """Whether this names one file or directory, and cannot lead out of the directory that it is in."""
    return bool(re.fullmatch(r"[^/\\\x00-\x1f\x7f]+", name)) and name not in (".", "..")


def refuse_links(directory: Path, names: Iterable[str]) -> None:
    """Check that none of these names in a directory is a symbolic link: what is written to a link changes a
    file elsewhere.

    Raises:
        UserError: one is.
    """
    for name in names:
        if (path := directory / name).is_symlink():
            raise UserError(
                f"{path} is a symbolic link, and memlab would write to what it points to; remove it, or put "
                "the file itself there"
            )


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
    """The reason why a path is not a regular file, as the rest of a sentence; None = it is one."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "there is no such file"
    except OSError as error:  # too long, not allowed, a link to itself
        return f"it cannot be read ({error.strerror})"
    except ValueError:
        return "a path cannot have a null character"
    if stat.S_ISDIR(mode):
        return "it is a directory"
    return None if stat.S_ISREG(mode) else "it is not a regular file"


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DamagedFileError: it is not in the file.
        OSError: the file cannot be read.
    """
    content = file.read_bytes()
    if not content.strip(b"\0 \r\n\t"):
        raise DamagedFileError(f"{file} is empty, as after a power cut")
    try:
        found = json.loads(content.decode("utf-8"))
    except ValueError as error:
        raise DamagedFileError(f"{file} is damaged ({error})") from None
    if not isinstance(found, dict):
        raise DamagedFileError(f"{file} is damaged (it holds {type(found).__name__}, not an object)")
    return found


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`: all logged steps that survived, in order.

    Raises:
        OSError: the file cannot be read.
    """
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            logged = json.loads(line)
            if isinstance(logged, dict) and isinstance(logged.get("step"), int):
                found.append(logged)
    return found


def exists(named: str, path: Path) -> bool:
    """Whether something with this name exists. Nothing does if the name is too long for the disk.

    Args:
        named: as the user gave it, for the message.

    Raises:
        UserError: that cannot be found out, such as in a directory of another user.
    """
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in _ABSENT:
            return False
        raise UserError(f"{named}: {error.strerror} ({path})") from None
    except ValueError:  # a null character
        return False
    return True


def check_place(named: str, path: Path) -> None:
    """Check that a directory of this name exists, or can be created.

    Args:
        named: as the user gave it, for the message.

    Raises:
        UserError: neither is true.
    """
    if any(len(os.fsencode(part)) > _LONGEST for part in path.parts):
        raise UserError(f"{named} cannot be used: {os.strerror(errno.ENAMETOOLONG)}")
    try:
        os.lstat(path)
        if not path.is_dir():
            raise UserError(f"{named} is a file; give a directory")
    except FileNotFoundError:
        above = next(parent for parent in path.parents if exists(named, parent))
        if not above.is_dir():
            raise UserError(f"{named} cannot be made: {above} is a file") from None
        if not os.access(above, os.W_OK | os.X_OK):
            raise UserError(f"{named} cannot be made: {above} is not yours to write to") from None
    except OSError as error:
        raise UserError(f"{named} cannot be used: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{named} cannot be used: {error}") from None
