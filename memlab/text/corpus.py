"""Where documents come from: the files of each split, in a directory or on the Hugging Face hub.

A split is either a directory (`train/`, with files in it at any depth) or files that bear its name
(`train.txt`, `train-00000-of-00023.parquet`). Its files are taken in the order of their names. Links to files
and to directories are followed; what begins with a dot is left out. A file or directory that cannot be read
is an error, and is never passed over.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from memlab.errors import UserError, first_line
from memlab.files import expanded, why_no_file
from memlab.splits import SPLITS, Split
from memlab.text.files import HUB, SUFFIXES, Divide, File, documents, kind_of

NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_HUB_SECONDS = 4.0  # to wait for the hub's first answer; `datasets` itself would try for 23


@dataclass(frozen=True)
class Corpus:
    """The files of each split, and how they are read (see `memlab.text.files.documents`)."""

    files: dict[Split, tuple[File, ...]]
    column: str
    divide: Divide | None = None

    def is_one_document(self, file: File) -> bool:
        """Whether that is known without reading the file."""
        return file.is_one_document and self.divide is None

    def documents(self, file: File) -> Generator[bytes, None, None]:
        """The documents of a file, in order, empty ones too.

        Raises:
            UserError: it cannot be read.
        """
        return documents(file, self.column, self.divide)


def in_directory(data_dir: str) -> dict[Split, tuple[File, ...]]:
    """The files of the splits in a directory.

    Raises:
        UserError: there is no such directory, or a split is not in it, is there twice, or is empty.
    """
    if not data_dir:
        raise UserError("task.data_dir is empty: give the directory of the splits")
    root = expanded(data_dir, "task.data_dir")
    found = {}
    try:
        entries = sorted(root.iterdir())
        for split, names in NAMES.items():
            groups: dict[str, list[Path]] = {}
            for path in entries:
                if path.name in names and path.is_dir():
                    groups[f"{path.name}/"] = _walk(path)
                elif kind_of(path.name) and (name := _named(path.name, names)):
                    groups.setdefault(f"{name}.*", []).append(path)
            found[split] = _files(split, f"task.data_dir={data_dir}", groups)
    except FileNotFoundError:
        raise UserError(f"task.data_dir={data_dir} does not exist") from None
    except NotADirectoryError:
        raise UserError(f"task.data_dir={data_dir} is not a directory") from None
    except (OSError, ValueError) as error:
        where = getattr(error, "filename", None)
        within = f": {where}" if where and Path(where) != root else ""
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"task.data_dir={data_dir} cannot be read{within}: {reason}") from None
    return found


def _walk(directory: Path) -> list[Path]:
    """All that is in a directory, at any depth, and is no directory.

    Raises:
        OSError: a directory in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    files, seen = list[Path](), set[tuple[int, int]]()
    for parent, folders, names in os.walk(directory, onerror=refuse, followlinks=True):
        place = os.stat(parent)
        if (place.st_dev, place.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((place.st_dev, place.st_ino))
        folders[:] = [folder for folder in folders if not folder.startswith(".")]
        files += (Path(parent, name) for name in names if not name.startswith("."))
    return sorted(files)


def _files(split: Split, where: str, groups: dict[str, list[Path]]) -> tuple[File, ...]:
    names = NAMES[split]
    if not groups:
        directories = " or ".join(f"{name}/" for name in names)
        raise UserError(
            f"{where} has no {split} split: neither a directory {directories} nor a file such as "
            f"{names[0]}.txt"
        )
    if len(groups) > 1:
        raise UserError(f"{where} has the {split} split twice: {' and '.join(groups)}; keep one of them")
    (group, paths), *_ = groups.items()
    files = [(path, kind) for path in paths if (kind := kind_of(path.name))]
    if not files:
        held = f"has none among its {len(paths)} files" if paths else "is empty"
        raise UserError(f"{where}: {group} {held}; files of these kinds are read: {', '.join(SUFFIXES)}")
    for path, _ in files:
        if (wrong := why_no_file(path)) is not None:
            dead = path.is_symlink() and not path.exists()
            raise UserError(f"{path}: {'it is a link to nothing' if dead else wrong}; repair or remove it")
    stats = [(path, kind, path.stat()) for path, kind in files]
    with_content = tuple(
        File(str(path), kind, stat.st_size, str(stat.st_mtime_ns))
        for path, kind, stat in stats
        if stat.st_size
    )
    if not with_content:
        raise UserError(f"{where}: {group} has only files of 0 bytes, such as {files[0][0].name}")
    return with_content


def on_hub(
    source: str, folder: str | None, advice: str, revision: str | None = None
) -> dict[Split, tuple[File, ...]]:
    """The files of the splits of a dataset on the hub.

    Args:
        source: `owner/name`.
        folder: only files in it are looked at; None = all.
        advice: the end of the message if the hub cannot be had: what to do instead.
        revision: commit, branch or tag; None = the main branch as it is now.

    Raises:
        UserError: within some seconds, if the hub does not answer; or there is no such dataset, or it lacks a
            split.
    """
    names, commit = _list(source, revision, advice)
    where = f"task.source={source}" + (f" task.source_folder={folder}" if folder else "")
    found: dict[Split, tuple[File, ...]] = {}
    for split in SPLITS:
        files = []
        for name, size in names:
            path = PurePosixPath(name)
            if folder and not path.is_relative_to(folder):
                continue
            kind = kind_of(name)
            parents = set(path.parts[:-1]) & set(NAMES[split])
            if kind and size and (parents or _named(path.name, NAMES[split])):
                files.append(File(f"{HUB}datasets/{source}@{commit}/{name}", kind, size, commit))
        if not files:
            raise UserError(
                f"{where}: the dataset has no {split} split in files of these kinds: {', '.join(SUFFIXES)}. "
                f"{advice}"
            )
        found[split] = tuple(files)
    return found


def _list(source: str, revision: str | None, advice: str) -> tuple[list[tuple[str, int]], str]:
    """Names and sizes of a dataset's files, and the commit."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        raise UserError(
            f"task.source={source} is on the Hugging Face hub, and HF_HUB_OFFLINE is set. {advice}"
        )
    try:
        info = within(
            _HUB_SECONDS,
            lambda: HfApi().dataset_info(
                source, revision=revision, timeout=_HUB_SECONDS, files_metadata=True
            ),
        )
    except RevisionNotFoundError:
        raise UserError(
            f"task.source_revision={revision}: the dataset {source} has no such commit, branch or tag"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"task.source={source}: the Hugging Face hub has no such dataset, or it is private. {advice}"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(
            f"task.source={source}: the Hugging Face hub refuses: {str(error).splitlines()[0]}. {advice}"
        ) from None
    except Exception as error:  # its network errors have no common base
        reason = first_line(error)
        raise UserError(
            f"task.source={source}: the Hugging Face hub cannot be reached ({reason}). {advice}"
        ) from None
    return sorted((s.rfilename, s.size or 0) for s in info.siblings or []), str(info.sha)


def within(seconds: float, work: Callable[[], Any]) -> Any:
    """The result of `work`. The library's own time limit does not cover the search for the hub's address."""
    outcome: list[tuple[Any, Exception | None]] = []

    def attempt() -> None:
        try:
            outcome.append((work(), None))
        except Exception as error:
            outcome.append((None, error))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome:
        raise TimeoutError(f"no answer in {seconds:g} s")
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def _named(file: str, names: Iterable[str]) -> str | None:
    """Which of the names a file bears: `valid.txt`, `train-00000-of-00002.parquet`."""
    suffix = next(s for s in sorted(SUFFIXES, key=len, reverse=True) if file.lower().endswith(s))
    return next(
        (name for name in names if re.fullmatch(rf"{name}([-_.]\d[\w.-]*)?", file[: -len(suffix)])), None
    )


def cache_directory(cache_dir: str) -> Path:
    """Where tokenizers are kept: MEMLAB_CACHE if it is set, else `cache_dir`."""
    if given := os.environ.get("MEMLAB_CACHE"):
        return expanded(given, "MEMLAB_CACHE")
    return expanded(cache_dir, "task.cache_dir")
