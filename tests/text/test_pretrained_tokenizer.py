"""Tokenizers of pretrained models: their own ids and BEGIN, the bytes that they lose, and what is refused."""

from __future__ import annotations

import json
import random
from pathlib import Path

import huggingface_hub.constants
import numpy as np
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from memlab.errors import ConfigError, UserError
from memlab.text.given_back import patch
from memlab.text.pretrained_tokenizer import GGUF, PretrainedTokenizer, check, opened
from tests.text import made
from tests.text.naive import make, take, write
from tests.text.test_given_back import order_0
from tests.text.test_tokenizers import strange


@pytest.fixture(scope="module")
def models_of(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each kind."""
    place = tmp_path_factory.mktemp("models")
    for kind, make_one in made.KINDS.items():
        made.directory(place / kind, make_one())
    return place


def read(place: Path) -> PretrainedTokenizer:
    found = opened(str(place), place / "unused")
    assert isinstance(found, PretrainedTokenizer) and not (place / "unused").exists()
    return found


@pytest.mark.parametrize(
    ("kind", "begin", "begins_texts", "apart"),
    [
        ("gpt2", "<|endoftext|>", False, True),
        ("smollm", "<|endoftext|>", False, True),
        ("llama", "<s>", True, False),
        ("bert", "[CLS]", False, False),
    ],
)
def test_begin_is_the_model_s_own_token_and_no_text_is_encoded_to_it(
    models_of: Path, kind: str, begin: str, begins_texts: bool, apart: bool
) -> None:
    tokenizer = read(models_of / kind)
    plain = tokenizers.Tokenizer.from_file(str(models_of / kind / "tokenizer.json"))
    assert tokenizer.size == plain.get_vocab_size() and tokenizer.begin == plain.token_to_id(begin)
    assert tokenizer.begins_texts == begins_texts
    assert (tokenizer.known is not None) == apart and tokenizer.lossless == apart
    text = f"The sky {begin} is blue.{begin}"
    assert plain.token_to_id(begin) in plain.encode(text, add_special_tokens=False).ids
    assert tokenizer.begin not in tokenizer.encode(text.encode())
    plain.no_padding()
    for sentence in made.TEXT:
        assert (
            tokenizer.encode(sentence.encode()).tolist()
            == plain.encode(sentence, add_special_tokens=False).ids
        )


@pytest.mark.parametrize("kind", ["gpt2", "smollm"])
def test_a_byte_level_tokenizer_gives_every_text_back_and_encodes_words_as_in_the_whole(
    models_of: Path, kind: str
) -> None:
    tokenizer = read(models_of / kind)
    for text in strange(300):
        ids = tokenizer.encode(text.encode())
        assert tokenizer.given_back(text.encode(), ids) == text.encode()
        assert ids.tolist() == tokenizer.tokenizer.encode(text, add_special_tokens=False).ids
        assert "".join(tokenizer.decode_each(ids.tolist())) == text


@pytest.mark.parametrize("kind", made.KINDS)
def test_no_model_s_tokenizer_gains_by_what_it_loses(models_of: Path, kind: str) -> None:
    """As `test_given_back.py` has it for tokenizers of all sorts: letters folded, unknown ones left out."""
    tokenizer, rng, lost = read(models_of / kind), random.Random(1), 0
    for text in [*strange(60), *(sentence.title() * rng.randint(1, 3) for sentence in made.TEXT)]:
        document = text.encode()
        given = tokenizer.given_back(document, tokenizer.encode(document))
        missing = patch(document, given)
        assert missing.kept + missing.lost == len(document)
        assert order_0(given) + missing.bits >= order_0(document) - 1e-6
        lost += missing.lost
    assert (lost == 0) == (kind in ("gpt2", "smollm"))


def test_a_text_task_has_the_model_s_vocabulary(models_of: Path, tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / split, "txt", [[" ".join(made.TEXT)], ["The sea. "]])
    task = make(tmp_path, tokenizer=str(models_of / "bert"), batch_size=2)
    assert task.vocab_size == task.tokenizer.size and task.begin == 2 and task.word(2) == "BEGIN"
    (batch,) = take(task.evaluation("test", range(1)), 1)
    assert batch.tokens_BT[0, 0] == 2
    for b in (batch, *take(task.training(0, range(2)), 3)):
        begins_B = b.begins_BS[:, 0]
        assert (b.tokens_BT[begins_B, 0] == 2).all() and (b.targets_BT[b.counts_BT] != 2).all()
    amounts = task.amounts("test")
    assert amounts.lost_bytes > 0 and amounts.patch_bits > 0
    assert task.data()["tokenizer"] == read(models_of / "bert").digest


def test_begin_may_be_named_by_the_configuration(tmp_path: Path) -> None:
    saved = tokenizers.Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    saved.pre_tokenizer = pre_tokenizers.Whitespace()
    saved.add_special_tokens(["<start>", "<end>"])
    for config, begin in [
        ({"bos_token": "<start>", "eos_token": "<end>"}, 2),
        ({"bos_token": None, "eos_token": {"content": "<end>", "lstrip": False}}, 3),
    ]:
        assert read(Path(made.directory(tmp_path / "model", saved, **config))).begin == begin
    with pytest.raises(
        UserError, match=r"task\.tokenizer=.*model: it has no special token that begins a doc"
    ):
        read(Path(made.directory(tmp_path / "model", saved, bos_token="a")))
    (tmp_path / "model" / "tokenizer_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"tokenizer_config\.json cannot be read: Expecting property name"):
        read(tmp_path / "model")


def test_a_path_of_a_file_stays_what_it_was(models_of: Path, tmp_path: Path) -> None:
    """A saved tokenizer.json has BEGIN after its own ids, so that runs that were trained with it open."""
    tokenizer = opened(str(models_of / "gpt2" / "tokenizer.json"), tmp_path)
    assert tokenizer.begin == tokenizer.size and not isinstance(tokenizer, PretrainedTokenizer)


# From older files and .gguf, by transformers


def test_older_files_and_gguf_are_converted_once(
    models_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    gguf = pytest.importorskip("gguf")
    saved = json.loads((models_of / "gpt2" / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary, merges = saved["model"]["vocab"], [" ".join(pair) for pair in saved["model"]["merges"]]
    older = tmp_path / "older"
    older.mkdir()
    (older / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    (older / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (older / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    writer = gguf.GGUFWriter(str(tmp_path / f"model{GGUF}"), "llama")
    for name in ("block_count", "context_length", "embedding_length", "feed_forward_length", "head_count"):
        getattr(writer, f"add_{name}")(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_types([3 if name == "<|endoftext|>" else 1 for name in vocabulary])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(vocabulary["<|endoftext|>"])
    writer.add_eos_token_id(vocabulary["<|endoftext|>"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wanted, text = read(models_of / "gpt2"), " ".join(made.TEXT).encode()
    cache = tmp_path / "cache"
    for place in (older, tmp_path / f"model{GGUF}"):
        found = opened(str(place), cache)
        assert isinstance(found, PretrainedTokenizer) and found.begin == wanted.begin
        assert found.size == wanted.size and (found.encode(text) == wanted.encode(text)).all()
    assert len(list(cache.rglob("tokenizer.json"))) == 2
    monkeypatch.setattr("memlab.text.pretrained_tokenizer._by_transformers", None)  # not asked again
    assert opened(str(older), cache).begin == wanted.begin
    monkeypatch.undo()
    (older / "vocab.json").write_text("[]", encoding="utf-8")
    with pytest.raises(UserError, match=r"task\.tokenizer=.*older: transformers finds no tokenizer in it: "):
        opened(str(older), cache)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"takes the package transformers: pip install 'memlab\[pretrained\]'"
    ):
        opened(str(older), tmp_path / "other")


# On the hub, and mistakes


def test_a_model_of_the_hub_is_read_from_the_hub_s_cache(
    models_of: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    model = tmp_path / "models--someone--gpt2"
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text("c0ffee")
    made.directory(model / "snapshots" / "c0ffee", made.gpt2())
    check("someone/gpt2", ("bytes",))
    assert opened("someone/gpt2", tmp_path).begin == read(models_of / "gpt2").begin
    with pytest.raises(
        UserError,
        match=r"task\.tokenizer=someone/else: .*no such file or dir.*hub cannot be reached.*Download",
    ):
        opened("someone/else", tmp_path)


def test_what_can_be_said_before_anything_is_read(models_of: Path, tmp_path: Path) -> None:
    check(str(models_of / "bert"), ("bytes",))
    check(str(models_of / "bert" / "tokenizer.json"), ("bytes",))
    for given, said in [
        ("pretrained", "is the tokenizer of backbone=pretrained, which is not chosen"),
        (str(tmp_path), "there is no tokenizer.json in this directory; allowed are bytes, bpe, pretrained"),
        (
            "bite",
            "there is no such file; allowed are bytes, bpe, pretrained (the backbone's own), the path of",
        ),
        ("a/b.gguf", "there is no such file"),
    ]:
        with pytest.raises(ConfigError) as raised:
            check(given, ("bytes", "bpe"))
        assert str(raised.value).startswith(f"task.tokenizer={given}") and said in str(raised.value)


def test_ids_stay_small(models_of: Path) -> None:
    assert read(models_of / "bert").encode(b"the sky").dtype == np.uint16
    assert isinstance(read(models_of / "bert").tokenizer.decoder, decoders.WordPiece)
