"""What files hold, in few characters each, so that a change is noticed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from memlab.text.files import File, refusing

# larger files are identified by size and time alone: reading them would take too long
_HASHED_BYTES = 256 << 20

Fingerprint = list[int | str | None]  # size in bytes, time of modification or commit, SHA-256 or None


def fingerprints(files: Iterable[File]) -> dict[str, Fingerprint]:
    """Of each file by its name.

    Raises:
        UserError: one of them cannot be read.
    """
    different = {file.name: file for file in files}  # several parts of one file are in it once
    here = sum(file.size for file in different.values() if not file.on_hub) <= _HASHED_BYTES
    return {
        name: [file.size, file.stamp, _hash(file) if here and not file.on_hub else None]
        for name, file in sorted(different.items())
    }


def changes(before: dict[str, Fingerprint], now: dict[str, Fingerprint]) -> list[str]:
    """What has become of files since, in words. The same content is the same file, whatever its time."""
    found = [f"{name} is gone" for name in sorted(before.keys() - now.keys())]
    found += [f"{name} is new" for name in sorted(now.keys() - before.keys())]
    for name in sorted(before.keys() & now.keys()):
        (old_size, old_stamp, old_hash), (size, stamp, new_hash) = before[name], now[name]
        if size != old_size:
            found.append(f"{name} has {size:,} bytes, it had {old_size:,}")
        elif old_hash is None or new_hash is None:
            found += [f"{name} has been written to"] if stamp != old_stamp else []
        elif new_hash != old_hash:
            found.append(f"{name} has other text of the same size")
    return found


def _hash(file: File) -> str:
    with refusing(file), open(file.name, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
