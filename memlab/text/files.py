"""Files of text, and the documents in them, in the file's order.

A plain text file is one document, a line of JSON and a row of parquet are one each. A document is bytes: what
a tokenizer reads, and what bits per byte are counted on. All but `raw` ones are valid UTF-8, with the line
ends that the file has. A byte-order mark at the beginning of a text or JSON file is no part of its text.

Files of this machine are opened by their names as they are. Those of the hub are streamed by `datasets`,
which takes `*`, `?`, `[` and `::` in a name for a pattern.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import logging
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from memlab.errors import UserError, first_line

Kind = Literal["text", "jsonl", "parquet", "raw"]
# what the file's documents are, if not its texts, lines or rows one by one
Divide = Callable[[Iterable[bytes]], Iterator[bytes]]

SUFFIXES: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".tex": "text",
    ".txt.gz": "text",
    ".jsonl": "jsonl",
    ".jsonl.gz": "jsonl",
    ".parquet": "parquet",
}
HUB = "hf://"
_ROWS = 16  # of parquet, decoded at a time: books are a megabyte each


@dataclass(frozen=True)
class File:
    """A file of documents.

    Attributes:
        name: path, or address on the hub (`hf://...`).
        kind: how it is read; `raw` is bytes `begin` .. `end` as they are, as one document.
        size: bytes of the file as it is stored.
        stamp: changes when the content does: time of modification, or the hub's commit.
    """

    name: str
    kind: Kind
    size: int
    stamp: str
    begin: int = 0
    end: int | None = None

    @property
    def is_one_document(self) -> bool:
        """Whether that is known without reading it."""
        return self.kind == "raw" or (self.kind == "text" and not self.name.endswith(".gz"))

    @property
    def on_hub(self) -> bool:
        return self.name.startswith(HUB)


def kind_of(name: str) -> Kind | None:
    """How a file of this name is read; None if it is none of ours."""
    return next((kind for suffix, kind in SUFFIXES.items() if name.lower().endswith(suffix)), None)


def documents(file: File, column: str, divide: Divide | None = None) -> Generator[bytes, None, None]:
    """The documents of a file, empty ones too.

    Args:
        column: which field of JSON, or column of parquet, is the text.
        divide: makes documents of the file's texts, if they are not its documents.

    Raises:
        UserError: the file cannot be read, is not UTF-8, is corrupt, or has no such column; the message names
            the file.
    """
    texts = {"text": _whole, "raw": _piece, "jsonl": _json_lines, "parquet": _parquet}[file.kind](
        file, column
    )
    with refusing(file):
        yield from texts if divide is None else divide(texts)


@contextmanager
def refusing(file: File) -> Iterator[None]:
    """Turn the errors of reading a file into one that names it.

    Raises:
        UserError: it cannot be read.
    """
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        # gzip's errors are among them; network errors are when the file is on the hub
        raise UserError(f"{file.name} cannot be read: {_reason(error)}") from None


def _whole(file: File, column: str) -> Iterator[bytes]:
    content = _content(file)
    _check_utf8(file, content)
    yield content.removeprefix(codecs.BOM_UTF8)


def _piece(file: File, column: str) -> Iterator[bytes]:
    with open(file.name, "rb") as stream:
        stream.seek(file.begin)
        yield stream.read() if file.end is None else stream.read(file.end - file.begin)


def _content(file: File) -> bytes:
    if file.on_hub:
        from huggingface_hub import HfFileSystem

        content: bytes = HfFileSystem().read_bytes(file.name)
    else:
        content = Path(file.name).read_bytes()
    return gzip.decompress(content) if _is_gzip(file) else content


def _is_gzip(file: File) -> bool:
    return file.name.lower().endswith(".gz")


def _check_utf8(file: File, content: bytes) -> None:
    try:
        content.decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file.name} is not UTF-8: byte {content[error.start]:#04x} at position {error.start}; convert "
            "it to UTF-8 first"
        ) from None


def _json_lines(file: File, column: str) -> Iterator[bytes]:
    number = 0
    try:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1:
                line = line.removeprefix("\ufeff")
            if not line.strip():
                continue
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{file.name}, line {number}: broken JSON: {first_line(error)}") from None
            if not isinstance(entry, dict):
                raise UserError(
                    f"{file.name}, line {number}: a JSON object with the key {column!r} is expected"
                )
            if not isinstance(entry.get(column), str):
                raise UserError(
                    f"{file.name}, line {number}: {_missing(column, [*entry], 'key', column in entry)}"
                )
            try:
                yield entry[column].encode()
            except UnicodeEncodeError:
                raise UserError(
                    f"{file.name}, line {number}: half a surrogate pair, which is no character"
                ) from None
    except UnicodeDecodeError as error:
        if not file.on_hub:
            _check_utf8(file, _content(file))  # says where
        raise UserError(f"{file.name} is not UTF-8, after line {number}: {error.reason}") from None


def _lines(file: File) -> Iterator[str]:
    if file.on_hub:
        yield from _column(_streamed(file, "text"), "text")
        return
    with (
        gzip.open(file.name, "rb") if _is_gzip(file) else open(file.name, "rb") as stream,
        io.TextIOWrapper(stream, encoding="utf-8") as lines,
    ):
        yield from lines


def _parquet(file: File, column: str) -> Iterator[bytes]:
    import pyarrow as pa

    try:
        for number, text in enumerate(_rows(file, column)):
            if not isinstance(text, str):
                raise UserError(f"{file.name}, row {number}: {_missing(column, [], 'column', True)}")
            yield text.encode()
    except (pa.ArrowException, OSError, ValueError) as error:  # what is not UTF-8 is a ValueError
        raise UserError(f"{file.name} is not a readable parquet file: {_reason(error)}") from None


def _rows(file: File, column: str) -> Iterator[Any]:
    """One column of a parquet file; the others are not looked at."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if file.on_hub:
        rows = _streamed(file, "parquet", batch_size=_ROWS)
        _check_column(file, column, rows.column_names)
        yield from _column(rows, column)
        return
    with pa.OSFile(file.name) as stream, pq.ParquetFile(stream) as table:
        _check_column(file, column, table.schema_arrow.names)
        for batch in table.iter_batches(_ROWS, columns=[column], use_threads=False):
            yield from batch.column(column).to_pylist()


def _check_column(file: File, column: str, there: list[str] | None) -> None:
    if there is not None and column not in there:
        raise UserError(f"{file.name}: {_missing(column, there, 'column', False)}")


@lru_cache(maxsize=256)  # to open one takes a hundred times as long as to read it, if it is small
def _streamed(file: File, builder: str, **options: int) -> Any:
    """The lines or rows of a file on the hub, as `datasets` gives them."""
    import datasets

    if any(pattern in file.name for pattern in ("*", "?", "[", "::")):
        raise UserError(
            f"{file.name}: `datasets` takes a name with *, ?, [ or :: for a pattern; download the dataset, "
            "and give task.data_dir=DIR"
        )
    logging.getLogger("datasets").setLevel(logging.CRITICAL)  # it prints what it also raises
    return datasets.load_dataset(builder, data_files=[file.name], split="train", streaming=True, **options)


def _column(rows: Any, column: str) -> Iterator[Any]:
    """One column, row by row.

    By `iter`: in a torch worker, plain iteration gives each worker a share of the file, and the readers here
    go through all of it.
    """
    for batch in rows.select_columns([column]).iter(_ROWS):
        yield from batch[column]


def _missing(column: str, there: list[str], what: str, is_there: bool) -> str:
    if is_there:
        return f"task.text_column={column} is not text"
    return f"there is no {what} task.text_column={column}; there are: {', '.join(map(repr, there)) or 'none'}"


def _reason(error: Exception) -> str:
    return error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
