"""Tokenizers: nothing is lost, the trained one is made once, and a process that dies leaves nothing
behind.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tokenizers

from memlab.errors import ConfigError, UserError
from memlab.text import bpe
from memlab.text.tokenizers import ByteTokenizer, SavedTokenizer
from tests.text.naive import as_segments, make, take, write

SYLLABLES = [
    "ba",
    "ne",
    "ti",
    "mo",
    "lu",
    "er",
    "ing",
    "the ",
    ". ",
    "\n",
    " ",
    "é",
    "ß",
    "中文",
    "'s",
    "12",
    "  ",
    "\t",
]


def prose(size: int, seed: int) -> str:
    return "".join(random.Random(seed).choices(SYLLABLES, k=size))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "data/train", "txt", [[prose(400, i)] for i in range(6)])
    write(tmp_path / "data/validation", "txt", [[prose(100, 8)], ["x"]])
    write(tmp_path / "data/test", "txt", [[prose(100, 9)]])
    return tmp_path / "data"


def cached(place: Path) -> list[Path]:
    return sorted(p for p in place.rglob("*") if p.is_file() and p.suffix != ".lock")


def strange(count: int) -> list[str]:
    """Texts of all sorts of characters and spaces."""
    rng = random.Random(3)
    pieces = [
        *SYLLABLES,
        *"\u00a0\u2003\x1c\x85\x0b\r\u200b_!\u00b4\u0430\u0451\u00f1\U0001d54f\x00",
        "\r\n",
        "I'll",
    ]
    return ["".join(rng.choices(pieces, k=rng.randint(0, 60))) for _ in range(count)]


def test_bytes_are_the_text_itself() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("aé\n".encode()).tolist() == [97, 0xC3, 0xA9, 10]
    assert tokenizer.decode([97, 0xC3, 0xA9]) == "aé" and tokenizer.decode([0xC3]) == "\ufffd"


def test_bpe_loses_nothing_and_encodes_words_as_in_the_whole_text(data: Path, tmp_path: Path) -> None:
    task = make(data, tokenizer="bpe", bpe_size=400, cache_dir=str(tmp_path / "cache"))
    tokenizer = task.tokenizer
    assert isinstance(tokenizer, SavedTokenizer) and tokenizer.known is not None
    assert task.vocab_size == 401 and task.begin == 400 and tokenizer.encode(b"").tolist() == []
    for text in strange(400):
        ids = tokenizer.encode(text.encode()).tolist()
        assert tokenizer.decode(ids) == text
        assert ids == tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        assert not ids or max(ids) < task.begin
    longer = tokenizer.encode(prose(400, 0).encode())
    assert len(longer) < 0.6 * len(prose(400, 0).encode()) and longer.dtype == np.uint16


def test_a_bpe_stream_is_the_documents_encoded(data: Path, tmp_path: Path) -> None:
    task = make(data, tokenizer="bpe", bpe_size=400, cache_dir=str(tmp_path / "cache"), batch_size=1)
    (batch,) = take(task.evaluation("test", range(1)), 1)
    ids = task.tokenizer.encode(prose(100, 9).encode()).tolist()
    tokens, targets, _, begins, offset = as_segments(batch, 0)[0]
    assert targets == ids[:5] and tokens == [400, *ids[:4]] and begins and offset == 0
    amounts = task.amounts("test")
    assert (
        amounts.tokens == len(ids)
        and amounts.bytes == len(prose(100, 9).encode())
        and amounts.words == len(prose(100, 9).split())
    )


def test_a_bpe_is_trained_once_for_the_same_files(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache"
    said = "memlab: training a tokenizer of {} ids on the training split, once\n"
    make(data, tokenizer="bpe", bpe_size=300, cache_dir=str(cache))
    assert capsys.readouterr().err == said.format(300)
    (file,) = cached(cache)
    first = file.read_bytes()
    make(data, tokenizer="bpe", bpe_size=300, cache_dir=str(cache))
    assert capsys.readouterr().err == ""
    make(data, tokenizer="bpe", bpe_size=301, cache_dir=str(cache))
    assert capsys.readouterr().err == said.format(301) and len(cached(cache)) == 2
    (data / "train/000.txt").write_text(prose(400, 77))
    make(data, tokenizer="bpe", bpe_size=300, cache_dir=str(cache))
    assert capsys.readouterr().err == said.format(300) and len(cached(cache)) == 3
    assert file.read_bytes() == first


def test_the_same_text_gives_the_same_bpe(data: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        make(data, tokenizer="bpe", bpe_size=420, cache_dir=str(tmp_path / name))
    (one,), (two,) = cached(tmp_path / "one"), cached(tmp_path / "two")
    assert one.read_bytes() == two.read_bytes()


def test_only_the_training_split_is_seen(data: Path, tmp_path: Path) -> None:
    write(data / "test", "txt", [["zyzyzyzy " * 200]])
    task = make(data, tokenizer="bpe", bpe_size=400, cache_dir=str(tmp_path / "cache"))
    assert len(task.tokenizer.encode(b"zyzyzyzy")) == 8


def test_memlab_cache_goes_before_cache_dir(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMLAB_CACHE", str(tmp_path / "there"))
    make(data, tokenizer="bpe", cache_dir=str(tmp_path / "cache"))
    assert cached(tmp_path / "there") and not (tmp_path / "cache").exists()
    monkeypatch.delenv("MEMLAB_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    make(data, tokenizer="bpe", cache_dir="~/.cache/memlab")
    assert cached(tmp_path / "home/.cache/memlab/tokenizers")


TRAIN = """
import os, sys
from pathlib import Path
from memlab.text import tokenizers
from tests.text.naive import make
if sys.argv[3] == "dies":
    os.replace = lambda *paths: os._exit(9)
print(make(Path(sys.argv[1]), tokenizer="bpe", cache_dir=sys.argv[2]).vocab_size)
"""


def start(data: Path, cache: Path, how: str) -> subprocess.Popen[str]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(data), str(cache), how],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_processes_that_begin_at_once_train_one_tokenizer_even_after_one_died(
    data: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    died = start(data, cache, "dies")
    died.communicate()
    assert died.returncode == 9 and not list(cache.rglob("tokenizer.json"))
    outputs = [process.communicate() for process in [start(data, cache, "lives") for _ in range(2)]]
    assert [out for out, _ in outputs] == ["301\n", "301\n"]
    assert sum("training a tokenizer" in err for _, err in outputs) == 1
    assert len(list(cache.rglob("tokenizer.json"))) == 1


def test_a_saved_tokenizer_may_be_any(data: Path, tmp_path: Path) -> None:
    """One that changes the text, has added tokens, cuts and begins: only its ids are used."""
    saved = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    saved.normalizer = tokenizers.normalizers.Lowercase()
    saved.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    saved.add_special_tokens(["[CLS]", "[SEP]"])
    saved.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 3), ("[SEP]", 4)]
    )
    saved.enable_truncation(3)
    saved.enable_padding(length=9)
    saved.save(str(tmp_path / "mine.json"))
    task = make(data, tokenizer=str(tmp_path / "mine.json"))
    assert task.vocab_size == 6 and task.begin == 5 and task.word(5) == "BEGIN"
    assert task.tokenizer.encode(b"A b c A B a").tolist() == [0, 1, 2, 0, 1, 0]


def test_a_saved_bpe_that_adds_a_space_is_not_cut_into_words(tmp_path: Path, data: Path) -> None:
    make(data, tokenizer="bpe", cache_dir=str(tmp_path / "cache"))
    content = json.loads(cached(tmp_path / "cache")[0].read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "prefix.json").write_text(json.dumps(content))
    tokenizer = SavedTokenizer(tmp_path / "prefix.json")
    assert tokenizer.known is None
    text = "the bane timo\nluer"
    assert tokenizer.encode(text.encode()).tolist() == tokenizer.tokenizer.encode(text).ids


def test_mistakes_are_told(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"task\.bpe_size=256: the 256 bytes are ids of their own, so it is at least 257"
    ):
        make(data, tokenizer="bpe", bpe_size=256)
    with pytest.raises(
        UserError,
        match=r"task\.bpe_size=90000: the training text has only \d+ different pieces; use at most \d+",
    ):
        make(data, tokenizer="bpe", bpe_size=90000, cache_dir=str(tmp_path / "cache"))
    assert not cached(tmp_path / "cache")
    with pytest.raises(
        ConfigError, match=r"task\.tokenizer=bite: there is no such file; allowed are bytes, bpe, pretrained"
    ):
        make(data, tokenizer="bite")
    (tmp_path / "bad.json").write_text('{"model": 3}')
    with pytest.raises(
        UserError, match=r"task\.tokenizer=.*bad\.json is not a tokenizer saved by the tokenizers library"
    ):
        make(data, tokenizer=str(tmp_path / "bad.json"))
    (tmp_path / "file").touch()
    with pytest.raises(
        UserError, match=r"task\.cache_dir: .*tokenizer\.json cannot be written: Not a directory"
    ):
        make(data, tokenizer="bpe", cache_dir=str(tmp_path / "file"))


def plain(texts: list[str], size: int) -> str:
    """A BPE of whole texts, as the library trains it."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, show_progress=False, initial_alphabet=alphabet, special_tokens=[]
    )
    made.train_from_iterator(texts, trainer)
    return str(made.to_str())


def test_runs_of_ordinary_length_are_trained_on_whole(data: Path, tmp_path: Path) -> None:
    texts = [prose(400, i) for i in range(6)] + ["x" * 4096 + " " + "é" * 2047 + "-" * 4096 + " " * 4096]
    (data / "train/zzz.txt").write_text(texts[-1], encoding="utf-8")
    make(data, tokenizer="bpe", bpe_size=330, cache_dir=str(tmp_path / "cache"))
    assert json.loads(cached(tmp_path / "cache")[0].read_text()) == json.loads(plain(texts, 330))


def test_a_bpe_of_one_line_without_a_blank_is_trained_in_seconds_and_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bpe, "_EVERY", 0.05)
    line = "".join(random.Random(5).choices("abcdefghijklmnopqrstuvwxyz", k=200_000))
    write(data / "train", "jsonl", [[line]])
    began = time.process_time()
    task = make(data, tokenizer="bpe", bpe_size=4096, cache_dir=str(tmp_path / "cache"))
    assert time.process_time() - began < 4  # in one piece it takes 9
    said = capsys.readouterr().err.splitlines()
    lines = [words for words in said if words.startswith("memlab: still training the tokenizer, ")]
    assert len(lines) > 2 and lines[-1].endswith(" s so far; 0.2 of 0.2 MB of text read")
    assert task.tokenizer.decode(task.tokenizer.encode(line.encode()).tolist()) == line
    assert SavedTokenizer(cached(tmp_path / "cache")[0]).lossless
