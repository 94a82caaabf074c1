"""Text that cannot be read: one message, which names the file or the key, says what was found, and comes
before anything is written. What can be read is read, whatever its
name is and whatever lies beside it.
"""

from __future__ import annotations

import functools
import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from memlab.text import files as files_module
from memlab.text.corpus import in_directory
from memlab.text.files import File, Kind, documents
from tests.mistakes.small_text import LINE, LONG, MARK, SPLITS, TEXT, data, message
from tests.text.naive import make, take, write

NAMES = [
    "a[b]",
    "[!x]",
    "s*t",
    "q?",
    "x::y",
    "file:",
    "hf:",
    "zip::a",
    "{1,2}",
    "#1",
    "100%20",
    " a b ",
    "ü",
    "~a",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_taken_as_it_is(tmp_path: Path, name: str) -> None:
    found: dict[str, list[bytes]] = {}
    for kind in ("txt", "txt.gz", "jsonl", "jsonl.gz", "parquet"):
        place = tmp_path / kind / name
        for split in SPLITS:
            write(place / split / name, kind, [[TEXT], ["other"]])
            file = place / split / name / f"000.{kind}"
            file.rename(file.with_name(f"{name}.{kind}"))
        task = make(place, batch_size=1)
        found[kind] = [d for file in task.corpus.files["train"] for d in task.corpus.documents(file)]
        assert sorted(found[kind]) == [b"other", TEXT.encode()], kind
        assert task.amounts("test").bytes == len(TEXT) + len("other")
        assert {int(t) for t in take(task.training(0, range(1)), 9)[0].targets_BT[0]} > set(b"other")


def test_links_are_followed_and_one_that_leads_back_is_read_once(tmp_path: Path) -> None:
    place = data(tmp_path / "data")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/b.txt").write_text("b")
    (place / "train/linked").symlink_to(tmp_path / "more")
    (tmp_path / "more/back").symlink_to(place / "train")
    (place / "train/c.txt").symlink_to(tmp_path / "more/b.txt")
    found = [Path(f.name).relative_to(place).as_posix() for f in in_directory(str(place))["train"]]
    assert found == ["train/a.txt", "train/c.txt", "train/linked/b.txt"]


PLACES: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing is there": (lambda p: None, r"^task\.data_dir={0} does not exist$"),
    "a file": (lambda p: p.write_text("a"), r"^task\.data_dir={0} is not a directory$"),
    "a link to nothing": (lambda p: p.symlink_to("nowhere"), r"^task\.data_dir={0} does not exist$"),
    "a link to itself": (lambda p: p.symlink_to(p), r"cannot be read: Too many levels of symbolic links$"),
    "a text that is a link to nothing": (
        lambda p: (data(p) / "train/b.txt").symlink_to("nowhere"),
        r"^{0}/train/b\.txt: it is a link to nothing; repair or remove it$",
    ),
    "a text that is a pipe": (
        lambda p: os.mkfifo(data(p) / "train/b.txt"),
        r"^{0}/train/b\.txt: it is not a regular file; repair or remove it$",
    ),
    "a split that is a directory with the name of a file": (
        lambda p: (data(p) / "test").rename(p / "test.txt"),
        r"^{0}/test\.txt: it is a directory; repair or remove it$",
    ),
    "a split of white space": (
        lambda p: data(p, validation__a_txt=" \n\t\r\n\u2003\u00a0".encode()),
        r"^the validation split has no text: what is read of it is white space only$",
    ),
    "a test of white space": (
        lambda p: data(p, test__a_jsonl=b'{"text": "\\n"}\n{"text": "  "}\n'),
        r"^the test split has no text: what is read of it is white space only$",
    ),
    "a split of a byte-order mark": (
        lambda p: data(p, validation__a_txt=b"\xef\xbb\xbf"),
        r"^the validation split has no text: all documents of its 1 files are empty$",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_what_is_wrong_with_a_directory_is_said(tmp_path: Path, case: str) -> None:
    do, said = PLACES[case]
    do(tmp_path / "data")
    place = tmp_path / "data"
    found = message(lambda: make(place))
    assert re.search(said.format(re.escape(str(place))), found), found


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (LONG, "cannot be read: File name too long"),
        (f"./{LONG}/b", "cannot be read: File name too long"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("", "task.data_dir is empty"),
        ("a\0b", "cannot be read: embedded null"),
        ("~nosuchuser/x", "task.data_dir=~nosuchuser/x: no home directory is known for ~nosuchuser"),
    ],
)
def test_a_path_that_no_system_takes(path: str, said: str) -> None:
    assert said in message(lambda: in_directory(path))


def test_a_directory_that_may_not_be_read_is_not_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = data(tmp_path)
    (place / "train/closed").mkdir()
    scandir = os.scandir

    def closed(path: Any = ".") -> Any:  # who tests may be allowed everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert message(lambda: in_directory(str(place))) == (
        f"task.data_dir={place} cannot be read: {place}/train/closed: Permission denied"
    )


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    monkeypatch.setattr(files_module, "open", denied, raising=False)
    monkeypatch.setattr(pa, "OSFile", denied)
    kinds: tuple[Kind, ...] = ("text", "jsonl", "parquet", "raw")
    for kind in kinds:
        file = File("closed.x", kind, 1, "")
        found = message(functools.partial(list, documents(file, "text")))
        assert found in (
            "closed.x cannot be read: Permission denied",
            "closed.x is not a readable parquet file: Permission denied",
        )


# What is in a file


def parquet(table: pa.Table, metadata: dict[str, str] | None = None) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table if metadata is None else table.replace_schema_metadata(metadata), sink)
    return sink.getvalue().to_pybytes()


COLUMN = pa.array(["one", "two"])
MAP = pa.array([[("k", 1)], []], type=pa.map_(pa.string(), pa.int64()))

READ: dict[str, tuple[str, bytes]] = {
    "a map beside the text": ("a.parquet", parquet(pa.table({"m": MAP, "text": COLUMN}))),
    "a struct and a list beside it": (
        "a.parquet",
        parquet(pa.table({"s": [{"text": "x"}, None], "text": COLUMN, "l": [["x"], []]})),
    ),
    "broken metadata of datasets": (
        "a.parquet",
        parquet(pa.table({"text": COLUMN}), {"huggingface": '{"info": {"features": 3'}),
    ),
    "metadata of a newer datasets": (
        "a.parquet",
        parquet(
            pa.table({"text": COLUMN}),
            {"huggingface": json.dumps({"info": {"features": {"text": {"_type": "Hologram"}}}})},
        ),
    ),
    "metadata of other columns": (
        "a.parquet",
        parquet(
            pa.table({"text": COLUMN}),
            {"huggingface": json.dumps({"info": {"features": {"b": {"dtype": "int8", "_type": "Value"}}}})},
        ),
    ),
    "long strings": ("a.parquet", parquet(pa.table({"text": COLUMN.cast(pa.large_string())}))),
    "a dictionary": ("a.parquet", parquet(pa.table({"text": COLUMN.dictionary_encode()}))),
    "a mark before JSON": ("a.jsonl", MARK + b'{"text": "one"}\r\n\r\n{"text": "two"}'),
    "a mark before compressed JSON": (
        "a.jsonl.gz",
        gzip.compress(MARK + b'{"text": "one"}\n{"text": "two"}\n'),
    ),
    "a mark before a text": ("a.txt", MARK + b"onetwo"),
    "a mark before a compressed text": ("a.TXT.GZ", gzip.compress(MARK + b"onetwo")),
}


@pytest.mark.parametrize("case", READ)
def test_what_is_beside_the_text_does_not_matter(tmp_path: Path, case: str) -> None:
    name, content = READ[case]
    place = data(tmp_path)
    (place / "train/a.txt").unlink()
    (place / "train" / name).write_bytes(content)
    task = make(place, batch_size=1)
    (file,) = task.corpus.files["train"]
    assert b"".join(task.corpus.documents(file)) == b"onetwo"


GOOD = gzip.compress(bytes(range(32, 127)) * 40, mtime=0)

BROKEN: dict[str, tuple[str, bytes, str]] = {
    "gzip, its middle overwritten": ("a.txt.gz", GOOD[:30] + b"\xff" * 9 + GOOD[39:], "cannot be read: "),
    "gzip, its end missing": ("a.txt.gz", GOOD[:-9], "cannot be read: Compressed file ended"),
    "gzip, its checksum wrong": ("a.txt.gz", GOOD[:-8] + b"\0" * 8, "cannot be read: CRC check failed"),
    "gzip, not one": ("a.txt.gz", b"plain", "cannot be read: Not a gzipped file"),
    "gzip of lines, its middle overwritten": (
        "a.jsonl.gz",
        (z := gzip.compress(LINE * 999, mtime=0))[:14] + b"\xff" * 9 + z[23:],
        "cannot be read: ",
    ),
    "UTF-16": ("a.txt", "text".encode("utf-16"), "is not UTF-8: byte 0xff at position 0"),
    "UTF-16 lines": ("a.jsonl", '{"text": "a"}\n'.encode("utf-16"), "is not UTF-8: byte 0xff at position 0"),
    "Latin-1": ("a.md", b"na\xefve", "is not UTF-8: byte 0xef at position 2; convert it to UTF-8 first"),
    "half a character": ("a.txt", "中".encode()[:2], "is not UTF-8: byte 0xe4 at position 0"),
    "two marks": ("a.jsonl", MARK + MARK + LINE, ", line 1: broken JSON: "),
    "JSON, too deep": ("a.jsonl", LINE + b"[" * 100_000 + b"\n", ", line 2: "),
    "JSON, a number that is too long": ("a.jsonl", b"9" * 5000 + b"\n", ", line 1: broken JSON: "),
    "JSON over several lines": ("a.jsonl", b'{\n"text": "a"\n}\n', ", line 1: broken JSON: "),
    "JSON, another encoding of one line": (
        "a.jsonl",
        LINE + b'{"text": "\xe9"}\n',
        "byte 0xe9 at position 24",
    ),
    "parquet, a text that is not UTF-8": (
        "a.parquet",
        parquet(pa.table({"text": pa.array([b"a\xff"]).view(pa.string())})),
        "is not a readable parquet file: 'utf-8' codec can't decode",
    ),
    "parquet, its beginning alone": ("a.parquet", b"PAR1", "is not a readable parquet file: "),
    "parquet, bytes for text": (
        "a.parquet",
        parquet(pa.table({"text": [b"a"]})),
        ", row 0: task.text_column=text",
    ),
    "parquet, a map for text": (
        "a.parquet",
        parquet(pa.table({"text": MAP})),
        ", row 0: task.text_column=text",
    ),
    "parquet, another column": (
        "a.parquet",
        parquet(pa.table({"m": MAP, "body": COLUMN})),
        "there is no column task.text_column=text; there are: 'm', 'body'",
    ),
    "parquet, the column within another": (
        "a.parquet",
        parquet(pa.table({"s": [{"text": "x"}]})),
        "there is no column task.text_column=text; there are: 's'",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_file_is_named(tmp_path: Path, case: str) -> None:
    name, content, said = BROKEN[case]
    place = data(tmp_path)
    (place / "train" / f"b{name}").write_bytes(content)
    found = message(lambda: make(place))
    assert found.startswith(f"{place}/train/b{name}") and said in found


def test_the_hub_reads_what_the_disk_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its way, through `datasets`, on files of this machine."""
    rows = ["one", "", "tw\r\no \u2028 3", "中"]
    for kind in ("jsonl", "jsonl.gz", "parquet"):
        write(tmp_path, kind, [rows])
        file = File(str(tmp_path / f"000.{kind}"), "parquet" if kind == "parquet" else "jsonl", 1, "")
        here = list(documents(file, "text"))
        with monkeypatch.context() as patched:
            patched.setattr(files_module, "HUB", str(tmp_path))
            assert file.on_hub and list(documents(file, "text")) == here == [row.encode() for row in rows]


@pytest.mark.parametrize("name", ["a[b].jsonl", "a*.parquet", "a?.jsonl", "x::a.jsonl.gz"])
def test_a_name_on_the_hub_that_datasets_takes_for_a_pattern(name: str) -> None:
    file = File(f"hf://datasets/o/n@c/{name}", "parquet" if name.endswith("parquet") else "jsonl", 1, "c")
    assert message(lambda: list(documents(file, "text"))) == (
        f"{file.name}: `datasets` takes a name with *, ?, [ or :: for a pattern; download the dataset, and "
        "give task.data_dir=DIR"
    )
