"""Text tasks: what an evaluation reads and counts, WikiText's articles, enwik8's bytes."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memlab.errors import ConfigError, UserError
from memlab.tasks import enwik8
from memlab.tasks.enwik8 import Enwik8
from memlab.tasks.text import Amounts, TextTask, shortened
from memlab.tasks.wikitext import WikiText, articles
from memlab.text.streams import file_order
from tests.text.naive import BEGIN, as_segments, corpus, make, options, same, take, words, write

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"
TEXTS = ["text", "pg19", "arxiv_math", "wikitext", "enwik8"]
needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data are not here")


def read(task: TextTask, split: Any) -> list[bytes]:
    """The documents that an evaluation reads, put together from its batches."""
    found: list[list[bytes]] = [[] for _ in range(task.evaluation_rows(split))]
    for batch in task.evaluation(split, range(len(found))):
        for row, documents in enumerate(found):
            for segment in as_segments(batch, row):
                if segment[3]:
                    documents.append(b"")
                if any(segment[2]):
                    documents[-1] += bytes(
                        t for t, counts in zip(segment[1], segment[2], strict=True) if counts
                    )
    return list(itertools.chain.from_iterable(found))


def test_amounts_are_those_of_what_is_read(tmp_path: Path) -> None:
    texts = ["one two\u2003three\n\n four", "ünï çödé — 中文", "   ", "x"]
    write(tmp_path / "validation", "jsonl", [[texts[0], "", texts[1]], [texts[2]], [texts[3]]])
    task = corpus(tmp_path / "other")
    (tmp_path / "other/validation").rename(tmp_path / "unused")
    (tmp_path / "validation").rename(tmp_path / "other/validation")
    for documents, size in itertools.product([None, 1, 2, 3, 9], [None, 1, 4, 6, 500]):
        task = make(tmp_path / "other", validation_documents=documents, validation_bytes=size)
        cut = [t.encode()[:size].decode(errors="ignore").encode() for t in texts]
        wanted = [t for t in cut if t][:documents]
        assert sorted(read(task, "validation")) == sorted(wanted)
        count = sum(map(len, wanted))
        assert task.amounts("validation") == Amounts(
            len(wanted), count, sum(len(t.decode().split()) for t in wanted), count
        )
        assert task.evaluation_rows("validation") == min(3, len(wanted))
    assert task.amounts("test") == Amounts(2, 45, sum(len(t.split()) for t in words([40, 5], 2)), 45), (
        "the other split has its own limits"
    )


def test_a_cut_is_before_the_character_that_would_exceed_it() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = "".join(rng.choices("aé中\U0001d54f\n", k=rng.randint(0, 12)))
        for size in range(50):
            assert shortened(text.encode(), size) == text.encode()[:size].decode(errors="ignore").encode()
    assert shortened(b"abc", None) == b"abc"


def test_training_is_not_cut(tmp_path: Path) -> None:
    task = corpus(tmp_path, validation_documents=1, test_documents=1, validation_bytes=1, test_bytes=1)
    assert same(
        take(task.training(0, range(3)), 20), take(corpus(tmp_path / "again").training(0, range(3)), 20)
    )


def test_mistakes_are_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.workers=4: from 0 to task\.batch_size=3"):
        TextTask(**(options(tmp_path) | {"workers": 4}))
    with pytest.raises(ConfigError, match=r"task\.workers=-1"):
        TextTask(**(options(tmp_path) | {"workers": -1}))
    TextTask(**options(tmp_path / "nowhere"))  # files are looked for by prepare
    with pytest.raises(
        UserError,
        match=r"task\.data_dir is null: say where the text is, "
        r"task\.data_dir=DIR with train/, validation/ and test/",
    ):
        make(None)


def test_rows_that_would_read_the_same_are_warned_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus(tmp_path, "txt", [["one"], ["two"]], batch_size=2)
    assert capsys.readouterr().err == ""
    make(tmp_path, batch_size=3)
    assert capsys.readouterr().err.startswith(
        "memlab: warning: task.batch_size=3 rows and only 2 training documents: "
    )


# WikiText

FIRST = (
    " \n = One = \n \n Text of one . \n \n = = Part = = \n \n More = text = here . \n = Not a title = \n "
    "glued to text \n \n"
)
SECOND = " = Two : B = \n \n Text . \n"


@pytest.mark.parametrize("kind", ["txt", "lines", "parquet"])
def test_an_article_begins_at_a_heading_of_the_first_level(tmp_path: Path, kind: str) -> None:
    whole = FIRST + SECOND
    if kind == "lines":
        found = list(articles(line.encode() for line in whole.splitlines(keepends=True)))
    else:
        # the hub's rows are the lines, the blank ones empty
        rows = (
            [line if line.strip() else "" for line in whole.splitlines(keepends=True)]
            if kind == "parquet"
            else [whole]
        )
        task = corpus(tmp_path, kind, [rows], cls=WikiText)
        (file,) = task.corpus.files["train"]
        found = list(task.corpus.documents(file))
        assert not task.corpus.is_one_document(file)
    assert found == [FIRST.encode(), SECOND.encode()]


def test_text_without_headings_is_one_article() -> None:
    assert list(articles([b"a\n", b"b\n"])) == [b"a\nb\n"] and list(articles([])) == []


@needs_data
def test_wikitext_2_has_its_published_numbers_of_articles() -> None:
    task = make(SHARED / "wikitext-2", WikiText, batch_size=4)
    found = {
        split: [d for f in files for d in task.corpus.documents(f)]
        for split, files in task.corpus.files.items()
    }
    assert {split: len(documents) for split, documents in found.items()} == {
        "train": 600,
        "validation": 60,
        "test": 60,
    }
    assert b"".join(found["test"]) == (SHARED / "wikitext-2/test.txt").read_bytes()
    amounts = task.amounts("test")
    # words of the published 245,569 tokens less one <eos> for each line
    assert amounts == Amounts(60, 1_256_449, 241_211, 1_256_449)
    assert sum(map(len, read(task, "test"))) == amounts.bytes


# enwik8


def enwik8_options(place: Path | None, **changes: Any) -> dict[str, Any]:
    own = (
        "data_dir",
        "segment_length",
        "num_segments",
        "batch_size",
        "validation_bytes",
        "test_bytes",
        "workers",
    )
    return {key: options(place)[key] for key in own} | {"part_bytes": 40} | changes


def test_enwik8_is_cut_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = random.Random(1).randbytes(300)  # not text
    (tmp_path / "enwik8").write_bytes(content)
    monkeypatch.setattr(enwik8, "BORDERS", {"train": (0, 250), "validation": (250, 275), "test": (275, 300)})
    task = Enwik8(**enwik8_options(tmp_path, test_bytes=20))
    task.prepare()
    assert task.vocab_size == BEGIN + 1
    assert read(task, "validation") == [content[250:275]] and task.evaluation_rows("validation") == 1
    (read_of_test,) = read(task, "test")
    assert (
        content[275:295].startswith(read_of_test)
        and len(read_of_test) >= 17
        and task.amounts("test").bytes == len(read_of_test)
    )
    parts = {content[at : min(at + 40, 250)] for at in range(0, 250, 40)}
    task = Enwik8(**enwik8_options(tmp_path, batch_size=1))
    task.prepare()
    seen = []
    for batch in take(task.training(0, range(1)), 19):
        for segment in as_segments(batch, 0):
            seen = [*seen, b""] if segment[3] else seen
            seen[-1] += bytes(t for t, counts in zip(segment[1], segment[2], strict=True) if counts)
    assert set(seen[:7]) == parts


def test_enwik8_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"task\.data_dir is null: download https://mattmahoney\.net/dc/enwik8\.zip, "
        "unpack it, and give",
    ):
        Enwik8(**enwik8_options(None)).prepare()
    with pytest.raises(UserError, match=r"has no file enwik8; download"):
        Enwik8(**enwik8_options(tmp_path)).prepare()
    (tmp_path / "enwik8").write_bytes(b"short")
    with pytest.raises(UserError, match=r"enwik8 has 5 bytes, enwik8 has 100,000,000; download"):
        Enwik8(**enwik8_options(tmp_path)).prepare()


# What a person sees


def show(*override: str) -> list[str]:
    command = [sys.executable, "-m", "memlab.show", *override]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    return done.stdout.splitlines()


def test_pieces_are_shown_with_beginnings_and_padding(tmp_path: Path) -> None:
    texts = dict(zip(file_order(0, 0, 3), ["abcdefg", "hijklmnopqrst", "uvw"], strict=True))
    corpus(tmp_path, "txt", [[texts[number]] for number in range(3)])
    sizes = ("task.batch_size=1", "task.segment_length=4", "task.num_segments=2", "samples=2")
    lines = show("task=text", f"task.data_dir={tmp_path}", *sizes)
    assert lines[0] == "text, train: 1 rows, in a step each reads 2 segments of 4 tokens; 257 token ids"
    assert lines[lines.index("row 0, step 1") :] == [
        *[
            "row 0, step 1",
            "segment 1   a document begins  tokens 0 to 3",
            "    abcd",
            "segment 2   tokens 4 to 6  1 of padding",
            "    efg",
            "",
        ],
        *[
            "row 0, step 3",
            "segment 1   tokens 8 to 11",
            "    pqrs",
            "segment 2   tokens 12 to 12  3 of padding",
            "    t",
        ],
    ]
    lines = show("task=text", f"task.data_dir={tmp_path}", "split=test", *sizes)
    assert any(line.startswith("2 documents, 45 bytes, ") for line in lines)


# Real books


@needs_data
def test_real_books_are_read_whole() -> None:
    task = make(SHARED / "pg19", segment_length=256, num_segments=4, batch_size=8, validation_bytes=65536)
    files = sorted((SHARED / "pg19/validation").glob("*.txt"))
    beginnings = [shortened(path.read_bytes(), 65536) for path in files]
    assert sorted(read(task, "validation")) == sorted(beginnings)
    amounts = task.amounts("validation")
    assert amounts.words == sum(len(t.decode().split()) for t in beginnings) and amounts.bytes == sum(
        map(len, beginnings)
    )
    batches = take(task.training(1, range(8)), 600)
    assert all(batch.counts_BT.mean() > 0.5 for batch in batches)
    assert same(take(task.training(1, range(8), batches[400].position), 3), batches[401:404])
