"""Which files belong to which split, what is in them, and the one clear message for each that is broken."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from memlab.errors import UserError
from memlab.text import corpus as corpora
from memlab.text.corpus import in_directory, on_hub
from memlab.text.files import File, documents
from tests.text.naive import corpus, make, write

SPLITS = ("train", "validation", "test")


def small(place: Path, **contents: bytes) -> Path:
    """A data directory whose splits have one file each; `train__x_jsonl` is train/x.jsonl."""
    for split in SPLITS:
        if not any(name.startswith(split) for name in contents):
            contents[f"{split}__a_txt"] = b"some text"
    for name, content in contents.items():
        path = place / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return place


def names(place: Path) -> dict[str, list[str]]:
    return {
        split: [Path(f.name).relative_to(place).as_posix() for f in files]
        for split, files in in_directory(str(place)).items()
    }


def test_files_are_found_at_any_depth_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in (
        "train/b.txt",
        "train/a/z.md",
        "train/c.jsonl",
        "train/x.csv",
        "train/.hidden.txt",
        "train/.git/a.txt",
        "metadata.csv",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    (tmp_path / "train/empty.txt").touch()
    (tmp_path / "val").mkdir()
    (tmp_path / "val/1.tex").write_text("a")
    (tmp_path / "dev").write_text("not a directory, nor of a known kind")
    small(tmp_path, validation_csv=b"a", test_txt=b"b", train_notes_txt=b"no split", **{"train__b_txt": b"t"})
    assert names(tmp_path)["train"] == ["train/a/z.md", "train/b.txt", "train/c.jsonl"]
    assert names(tmp_path)["validation"] == ["val/1.tex"] and names(tmp_path)["test"] == ["test.txt"]


@pytest.mark.parametrize("validation", ["validation", "valid", "val", "dev"])
def test_a_split_may_be_files_that_bear_its_name(tmp_path: Path, validation: str) -> None:
    files = [
        "train-00000-of-00002-5263dc43.parquet",
        "train-00001-of-00002-2b13c68d.parquet",
        f"{validation}.jsonl",
        "test.txt.gz",
    ]
    for name in [*files, "trainer.txt", "train_loss.txt", "testing-1.txt", "train.csv"]:
        (tmp_path / name).write_text("x")
    assert names(tmp_path) == {"train": files[:2], "validation": files[2:3], "test": files[3:]}


def test_what_is_wrong_with_a_directory_is_told(tmp_path: Path) -> None:
    def message(place: Path) -> str:
        with pytest.raises(UserError) as caught:
            in_directory(str(place))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert message(tmp_path / "nowhere") == f"task.data_dir={tmp_path}/nowhere does not exist"
    (tmp_path / "file").touch()
    assert "is not a directory" in message(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "has no train split: neither a directory train/ nor a file such as train.txt" in message(
        tmp_path / "empty"
    )
    (tmp_path / "empty/train").mkdir()
    assert "train/ is empty; files of these kinds are read: .txt" in message(tmp_path / "empty")
    (tmp_path / "empty/train/a.pdf").write_text("a")
    assert "train/ has none among its 1 files; files of these kinds are read: .txt" in message(
        tmp_path / "empty"
    )
    (tmp_path / "empty/train/a.txt").touch()
    assert "train/ has only files of 0 bytes, such as a.txt" in message(tmp_path / "empty")
    (tmp_path / "empty/train/a.txt").write_text("a")
    assert "has no validation split: neither a directory validation/ or valid/ or val/ or dev/" in message(
        tmp_path / "empty"
    )
    twice = small(tmp_path / "twice", valid__a_txt=b"a", validation__a_txt=b"a")
    assert "has the validation split twice: valid/ and validation/; keep one of them" in message(twice)


def parquet(place: Path, column: str = "text", values: Any = ("a", "b")) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({column: list(values), "n": range(len(values))}), place / "made.parquet")
    return (place / "made.parquet").read_bytes()


def broken(place: Path) -> dict[str, tuple[bytes, str]]:
    """Files that cannot be read, and what is said of each."""
    good = parquet(place, values=["many words " * 50, "b"])
    many = b'{"text": "ok"}\n' * 5
    return {
        "latin.txt": (b"caf\xe9 noir", r"is not UTF-8: byte 0xe9 at position 3; convert"),
        "latin.txt.gz": (gzip.compress(b"a\xff"), r"is not UTF-8: byte 0xff at position 1"),
        "cut.txt.gz": (gzip.compress(b"many words" * 99)[:-12], r"cannot be read: "),
        "none.txt.gz": (b"plain text", r"cannot be read: Not a gzipped file"),
        "latin.jsonl": (many + b'{"text": "caf\xe9"}\n', r"is not UTF-8: byte 0xe9 at position 88"),
        "line.jsonl": (many + b'\n{"text": "a\n', r", line 7: broken JSON: "),
        "list.jsonl": (many + b"[1]\n", r", line 6: a JSON object with the key 'text' is expected"),
        "key.jsonl": (
            b'{"body": "a", "id": 1}\n',
            r", line 1: there is no key task\.text_column=text; there are: 'body', 'id'",
        ),
        "number.jsonl": (b'{"text": 3}\n', r", line 1: task\.text_column=text is not text"),
        "half.jsonl": (b'{"text": "a\\ud800"}\n', r", line 1: half a surrogate pair"),
        "none.jsonl.gz": (b"{}", r"none\.jsonl\.gz cannot be read: "),
        "text.parquet": (
            b"no parquet at all",
            r"is not a readable parquet file: Parquet magic bytes not found",
        ),
        "cut.parquet": (good[: len(good) // 2], r"is not a readable parquet file: "),
        "rotten.parquet": (good[:8] + b"\xff" * 40 + good[48:], r"is not a readable parquet file: "),
        "column.parquet": (
            parquet(place, "body"),
            r"there is no column task\.text_column=text; there are: 'body', 'n'",
        ),
        "number.parquet": (parquet(place, values=[1, 2]), r", row 0: task\.text_column=text is not text"),
        "null.parquet": (parquet(place, values=["a", None]), r", row 1: task\.text_column=text is not text"),
    }


@pytest.mark.parametrize("split", SPLITS)
def test_a_broken_file_is_named_before_a_run_begins(
    tmp_path: Path, split: str, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, (content, said) in broken(tmp_path).items():
        place = tmp_path / name
        small(place / "data")
        (place / "data" / split / f"b_{name}").write_bytes(content)
        with pytest.raises(UserError, match=said) as caught:
            make(place / "data")
        assert f"{place}/data/{split}/b_{name}" in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_broken_file_of_a_large_training_split_is_named_when_its_turn_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlab.tasks.text._CHECKED_BYTES", 10)
    task = make(small(tmp_path, train__a_txt=b"good text", train__b_txt=b"bad \xff"))
    with pytest.raises(UserError, match=r"train/b\.txt is not UTF-8"):
        list(zip(range(9), task.training(0, range(3)), strict=False))


def test_a_split_of_empty_documents_is_told(tmp_path: Path) -> None:
    for split in SPLITS:
        place = small(tmp_path / split)
        (place / split / "a.txt").unlink()
        write(place / split, "jsonl", [["", ""]])
        with pytest.raises(UserError, match="split has no text: all documents of its 1 files are empty"):
            make(place)


def test_documents_keep_their_bytes(tmp_path: Path) -> None:
    text = "a\r\nb\rc\u2028d \ufeff \U0001d54f\n\n  "
    for kind in ("txt", "txt.gz", "jsonl", "jsonl.gz", "parquet"):
        task = corpus(tmp_path / kind, kind, [[text]])
        (file,) = task.corpus.files["train"]
        assert list(task.corpus.documents(file)) == [text.encode()], kind


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    for kind in ("text", "jsonl", "parquet"):
        with pytest.raises(UserError, match=r"gone\.x"):
            list(documents(File(str(tmp_path / "gone.x"), kind, 1, ""), "text"))


# The hub


class Hub:
    """What HfApi would say, without a network."""

    names: tuple[str, ...] = ()

    def dataset_info(self, source: str, **options: Any) -> Any:
        siblings = [SimpleNamespace(rfilename=name, size=3) for name in self.names]
        return SimpleNamespace(siblings=siblings, sha="abc")


@pytest.mark.parametrize(
    ("listed", "folder", "train", "validation"),
    [
        (
            [
                "README.md",
                *(
                    f"data/{name}.parquet"
                    for name in ("train-0-of-2-1a", "train-1-of-2-2b", "validation-0-of-1-3c", "test-0-of-1")
                ),
            ],
            None,
            ["data/train-0-of-2-1a.parquet", "data/train-1-of-2-2b.parquet"],
            ["data/validation-0-of-1-3c.parquet"],
        ),
        (
            [
                f"{v}/{s}-00000-of-00001.parquet"
                for v in ("wikitext-2-raw-v1", "wikitext-103-raw-v1")
                for s in SPLITS
            ],
            "wikitext-2-raw-v1",
            ["wikitext-2-raw-v1/train-00000-of-00001.parquet"],
            ["wikitext-2-raw-v1/validation-00000-of-00001.parquet"],
        ),
        (
            [
                "proof-pile.py",
                "train/pile_train_1.jsonl.gz",
                "train/pile_train_0.jsonl.gz",
                "dev/pile_dev.jsonl.gz",
                "test/t.jsonl.gz",
            ],
            None,
            ["train/pile_train_0.jsonl.gz", "train/pile_train_1.jsonl.gz"],
            ["dev/pile_dev.jsonl.gz"],
        ),
    ],
)
def test_the_splits_of_a_dataset_on_the_hub(
    monkeypatch: pytest.MonkeyPatch,
    listed: list[str],
    folder: str | None,
    train: list[str],
    validation: list[str],
) -> None:
    monkeypatch.setattr(Hub, "names", tuple(listed))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    found = on_hub("owner/name", folder, "Do that.")
    assert [f.name for f in found["train"]] == [f"hf://datasets/owner/name@abc/{name}" for name in train]
    assert [f.name for f in found["validation"]] == [
        f"hf://datasets/owner/name@abc/{name}" for name in validation
    ]
    with pytest.raises(
        UserError,
        match=r"^task\.source=owner/name task\.source_folder=x: .* has no train split .* Do that\.$",
    ):
        on_hub("owner/name", "x", "Do that.")


OFFLINE = """
import time
from memlab.errors import UserError
from tests.text.naive import make
started = time.monotonic()
try:
    make(None, source="emozilla/pg19")
except UserError as error:
    print(time.monotonic() - started, error, sep="|")
"""


@pytest.mark.parametrize("environment", [{"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}])
def test_without_a_network_one_message_in_seconds_says_what_to_do(environment: dict[str, str]) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", OFFLINE],
        cwd=root,
        env={k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
        | {"PYTHONPATH": str(root)}
        | environment,
        capture_output=True,
        text=True,
    )
    assert done.stderr == "" and done.stdout.count("\n") == 1
    seconds, message = done.stdout.strip().split("|")
    assert float(seconds) < 5
    assert message.startswith("task.source=emozilla/pg19")
    assert "Download https://huggingface.co/datasets/emozilla/pg19" in message
    assert "task.data_dir=DIR with train/, validation/ and test/" in message


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_HUB_SECONDS", 0.2)
    monkeypatch.setattr(Hub, "dataset_info", lambda self, source, **options: time.sleep(2))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    started = time.monotonic()
    with pytest.raises(UserError, match=r"cannot be reached \(no answer in 0\.2 s\)\. Do that\."):
        on_hub("owner/name", None, "Do that.")
    assert time.monotonic() - started < 1.5
