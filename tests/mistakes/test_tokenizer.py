"""Tokenizers that cannot be used, or not on this text."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from memlab.config import cli
from memlab.config.checks import build_task, check, check_vocabulary
from memlab.text.tokenizers import SavedTokenizer
from tests.mistakes.small_text import LONG, MARK, data, message, saved
from tests.text.made import bert, directory
from tests.text.naive import make


def words(vocabulary: list[str], unknown: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token=unknown))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return made


LACKING: dict[str, tokenizers.Tokenizer] = {
    "words": words(["some"], "[?]"),
    "pieces": tokenizers.Tokenizer(models.WordPiece({"some": 0}, unk_token="[?]")),
    "letters": tokenizers.Tokenizer(models.BPE({"s": 0}, [], unk_token="[?]")),
}


@pytest.mark.parametrize("kind", LACKING)
def test_a_vocabulary_that_lacks_its_own_unknown_token(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, LACKING[kind])
    assert message(lambda: make(data(tmp_path / "data"), tokenizer=path)) == (
        f"task.tokenizer={path}: its vocabulary lacks its own token for what it does not know, '[?]'; add it"
    )
    assert len(SavedTokenizer(path).encode(b"some" if kind != "letters" else b"sss"))  # it is not needed here


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            tokenizers.Tokenizer(models.Unigram([("q", -1.0)], None)),
            ": it cannot encode the text: Encountered an unk",
        ),
        (
            tokenizers.Tokenizer(models.BPE({"q": 0}, [])),
            " makes no token of the validation split: its vocabulary",
        ),
        (tokenizers.Tokenizer(models.BPE()), " makes no token of the validation split: its vocabulary"),
    ],
)
def test_a_tokenizer_that_makes_nothing_of_the_text(
    tmp_path: Path, made: tokenizers.Tokenizer, said: str
) -> None:
    path = saved(tmp_path, made)
    assert message(lambda: make(data(tmp_path / "data"), tokenizer=path)).startswith(
        f"task.tokenizer={path}{said}"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is not a tokenizer saved by the tokenizers library"),
        (b"{}", "is not a tokenizer saved by the tokenizers library"),
        (b"\xff\xfe", "is not a tokenizer saved by the tokenizers library: 'utf-8' codec"),
        (b"[" * 100_000, "is not a tokenizer saved by the tokenizers library"),
    ],
)
def test_a_file_that_is_no_tokenizer(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "made.json").write_bytes(content)
    found = message(lambda: make(data(tmp_path / "data"), tokenizer=str(tmp_path / "made.json")))
    assert found.startswith(f"task.tokenizer={tmp_path}/made.json {said}")


def test_a_mark_before_a_tokenizer_is_no_part_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path, words(["some", "text"], "some"))
    Path(path).write_bytes(MARK + Path(path).read_bytes())
    assert make(data(tmp_path / "data"), tokenizer=path).vocab_size == 3


@pytest.mark.parametrize(
    ("tokenizer", "said"),
    [
        (
            "bite",
            "there is no such file; allowed are bytes, bpe, pretrained (the backbone's own), the path of",
        ),
        (LONG, "it cannot be read (File name too long); allowed are bytes, bpe, pretrained"),
        (".", "there is no tokenizer.json in this directory; allowed are bytes, bpe, pretrained"),
        ("/dev/null", "it is not a regular file; allowed are bytes, bpe, pretrained"),
        ("bytes/x/y", "there is no such file; "),
        ("bytes/x.json", "there is no such file; "),
        ("~nosuchuser/t.json", "no home directory is known for ~nosuchuser"),
    ],
)
def test_a_path_that_is_no_tokenizer_is_said_before_anything_is_read(tokenizer: str, said: str) -> None:
    task = ["task=text", "task.data_dir=nowhere", f"task.tokenizer='{tokenizer}'"]
    found = message(lambda: cli.compose_checked("train", task, check))
    assert found.startswith(f"task.tokenizer={tokenizer}: {said}")


def test_the_backbone_s_own_tokenizer_needs_a_pretrained_backbone() -> None:
    for task in (["task=text", "task.data_dir=nowhere"], ["task=passkey_text"]):
        words = [*task, "task.tokenizer=pretrained"]
        assert message(lambda words=words: cli.compose_checked("train", words, check)) == (
            "task.tokenizer=pretrained is the tokenizer of backbone=pretrained, which is not chosen; choose "
            "it, or give task.tokenizer the path of a model"
        )


def test_a_tokenizer_that_is_not_the_backbone_s(tmp_path: Path) -> None:
    """By the number of its ids, before any weights are read."""
    path = directory(tmp_path / "bert", bert())
    config = cli.compose_checked("train", ["task=passkey_text", f"task.tokenizer={path}"], check)
    task = build_task(config)
    for vocabulary, given, family, said in [
        (task.vocab_size, path, "bert", None),
        (task.vocab_size + 64, path, "bert", None),  # some models have more rows than ids
        (
            task.vocab_size - 1,
            path,
            "bert",
            f"task.tokenizer={path} has {task.vocab_size} token ids, and the",
        ),
        (10**6, "words", "bert", f"task.tokenizer=words has {task.vocab_size} token ids of its own, and the"),
        (task.vocab_size, "bpe", "memlab", None),
    ]:
        other = config.model_copy(
            update={
                "model": {**config.model, "path": "DIR", "family": family, "vocabulary": vocabulary},
                "task": {**config.task, "tokenizer": given},
            }
        )
        if said is None:
            check_vocabulary(other, task)
        else:
            found = message(lambda other=other: check_vocabulary(other, task))
            assert found.startswith(said) and found.endswith("use task.tokenizer=pretrained")
    own = {"path": path, "family": "bert", "vocabulary": 1}
    other = config.model_copy(
        update={
            "model": {**config.model, **own},
            "task": {**config.task, "tokenizer": "pretrained"},
        }
    )
    assert build_task(other).tokenizer_name == path
    run = other.model_copy(update={"model": {**config.model, **own, "family": "memlab"}})
    assert "is a run of memlab; name the tokenizer of its task" in message(lambda: build_task(run))


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = data(tmp_path / "data")
    for cache, reason in [(LONG, "File name too long"), (f"{tmp_path}/data/train/a.txt", "Not a directory")]:
        assert re.fullmatch(
            rf"task\.cache_dir: .*/tokenizer\.json cannot be written: {reason}",
            message(functools.partial(make, place, tokenizer="bpe", cache_dir=cache)),
        )
    monkeypatch.setenv("MEMLAB_CACHE", "~nosuchuser")
    assert message(lambda: make(place, tokenizer="bpe")) == (
        "MEMLAB_CACHE=~nosuchuser: no home directory is known for ~nosuchuser"
    )
