"""What tokenizers lose, against longest common subsequences of a table, and what bits per byte make of it."""

from __future__ import annotations

import functools
import json
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from tokenizers import decoders, models, normalizers, pre_tokenizers

from memlab.evaluation.metrics import of_text
from memlab.text.given_back import Patch, patch
from memlab.text.tokenizers import ByteTokenizer, SavedTokenizer
from tests.text.naive import make, write

LETTERS = "etaoinshr"


def longest(one: bytes, other: bytes) -> int:
    """Length of the longest common subsequence."""

    @functools.cache
    def common(i: int, j: int) -> int:
        if not i or not j:
            return 0
        if one[i - 1] == other[j - 1]:
            return common(i - 1, j - 1) + 1
        return max(common(i - 1, j), common(i, j - 1))

    return common(len(one), len(other))


def edited(rng: random.Random, text: bytes, share: float) -> bytes:
    """A text with bytes dropped, added and replaced."""
    out = bytearray()
    for byte in text:
        kind = rng.choice("dar") if rng.random() < share else ""
        if kind != "d":
            out.append(rng.choice(b"abc ") if kind == "r" else byte)
        if kind == "a":
            out.append(rng.choice(b"abc "))
    return bytes(out)


def test_what_is_kept_of_a_short_text_is_the_longest_common_subsequence() -> None:
    rng = random.Random(0)
    for _ in range(300):
        text = bytes(rng.choices(b"abc \xc3", k=rng.randint(0, 60)))
        given = edited(rng, text, rng.choice([0, 0.1, 0.5, 1]))
        kept = longest(text, given)
        assert patch(text, given) == Patch(kept, len(text) - kept, len(given) - kept), (text, given)


def test_windows_over_a_long_text_lose_its_place_nowhere() -> None:
    rng = random.Random(1)
    text = "".join(rng.choices("abcdefgh ijklmnop\n", k=20_000)).encode()
    assert patch(text, text) == Patch(20_000) and patch(text, b"") == Patch(0, 20_000, 0)
    assert patch(b"", text) == Patch(0, 0, 20_000)
    assert patch(text, text[:7000] + text[7300:]) == Patch(19_700, 300, 0)
    upper = text[:5000] + text[5000:9000].upper() + text[9000:]
    assert patch(text, upper).kept >= 20_000 - 4000 + text[5000:9000].count(b" ")
    for share in (0.01, 0.1):
        given = edited(rng, text, share)
        found = patch(text, given)
        assert found.kept + found.lost == len(text) and found.kept + found.added == len(given)
        # as many were dropped or replaced as were added or replaced, each a third of the share
        assert found.lost == pytest.approx(len(text) * share * 2 / 3, rel=0.15)


def test_a_patch_is_long_enough_to_tell_all_patches_of_its_size_apart() -> None:
    rng = random.Random(2)
    assert Patch(50).bits == 0 and Patch(0, 9, 0).bits == 72
    for _ in range(200):
        kept, lost, added = (rng.choice([0, 1, rng.randint(0, 500)]) for _ in range(3))
        places = math.lgamma(kept + lost + added + 1) - sum(math.lgamma(n + 1) for n in (kept, lost, added))
        needed = places / math.log(2) + 8 * lost
        assert Patch(kept, lost, added).bits >= min(needed, 8 * (kept + lost)) - 1e-6
        assert Patch(kept, lost, added).bits <= 8 * (kept + lost)
    assert Patch(1, 2, 3) + Patch(10, 20, 30) == Patch(11, 22, 33)


# Tokenizers of all kinds


def generated(rng: random.Random) -> tokenizers.Tokenizer:
    """A tokenizer that drops, folds or replaces something of most texts."""
    letters = rng.sample(LETTERS + "ETé ,.\n", k=rng.randint(1, 12))
    kind = rng.choice(["letters", "merged", "unknown", "words", "pieces", "unigram", "bytes"])
    if kind == "words":
        vocabulary = {word: i for i, word in enumerate(["?", "the", "sea", *letters])}
        made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
        made.pre_tokenizer = rng.choice([pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit()])
    elif kind == "pieces":
        pieces = ["?", *letters, *(f"##{letter}" for letter in letters)]
        made = tokenizers.Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="?"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        made.decoder = decoders.WordPiece()
    elif kind == "unigram":
        made = tokenizers.Tokenizer(models.Unigram([("?", 0.0), *((x, -1.0) for x in letters)], 0))
        made.decoder = decoders.Fuse()
    else:
        vocabulary, merges = {letter: i for i, letter in enumerate(letters)}, list[tuple[str, str]]()
        if kind == "merged":
            merges = [(letters[0], letters[-1])]
            vocabulary["".join(merges[0])] = len(vocabulary)
        if kind == "unknown":
            vocabulary["?"] = len(vocabulary)
        made = tokenizers.Tokenizer(
            models.BPE(vocabulary, merges, unk_token="?" if kind == "unknown" else None)
        )
        if kind == "bytes":  # of which most are missing
            made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
            made.decoder = decoders.ByteLevel()
        elif rng.random() < 0.7:
            made.decoder = decoders.Fuse()
    if rng.random() < 0.4:
        made.normalizer = rng.choice(
            [normalizers.Lowercase(), normalizers.NFKC(), normalizers.StripAccents(), normalizers.Strip()]
        )
    return made


def cases(tmp_path: Path, count: int) -> Iterator[tuple[SavedTokenizer, bytes]]:
    for number in range(count):
        rng = random.Random(number)
        generated(rng).save(str(tmp_path / "made.json"))
        words = ["the ", "sea", "The ", "\n", "é", "\ufb01n", "e\u0301", "  ", ", ", "tea. ", "中", *LETTERS]
        weights = [rng.random() ** 3 for _ in words]
        text = "".join(rng.choices(words, weights, k=rng.randint(1, 150)))
        yield SavedTokenizer(tmp_path / "made.json"), text.encode()


def order_0(text: bytes) -> float:
    """Bits of a text under the best model that predicts each byte alone: bits of the byte model."""
    return sum(n * math.log2(len(text) / n) for n in Counter(text).values())


def test_no_tokenizer_gains_by_leaving_bytes_out(tmp_path: Path) -> None:
    """A model of its tokens that is as good as the byte model, on the text that is left, is never better."""
    lossy = beaten = 0
    for tokenizer, text in cases(tmp_path, 300):
        assert not tokenizer.lossless
        given = tokenizer.given_back(text, tokenizer.encode(text))
        missing = patch(text, given)
        byte_model = order_0(text) / len(text)
        assert (order_0(given) + missing.bits) / len(text) >= byte_model - 1e-9, (text, given)
        lossy += missing.lost > 0
        beaten += order_0(given) / len(text) < byte_model - 1e-9  # as it was counted before
        beaten += order_0(given) / max(1, len(given)) < byte_model - 1e-9  # by what is given back alone
    assert lossy > 200 and beaten > 200


def test_a_tokenizer_of_one_letter_has_the_bits_of_the_bytes_that_it_leaves_out(tmp_path: Path) -> None:
    made = tokenizers.Tokenizer(models.BPE({"e": 0}, []))
    made.decoder = decoders.Fuse()
    made.save(str(tmp_path / "made.json"))
    place = tmp_path / "data"
    text = "there were three trees; " * 20
    for split in ("train", "validation", "test"):
        write(place / split, "txt", [[text]])
    task = make(place, tokenizer=str(tmp_path / "made.json"), batch_size=1)
    read = task.amounts("test")
    assert read.tokens == text.count("e") and read.lost_bytes == len(text) - text.count("e")
    found = of_text(5)
    found.update(nats=torch.zeros(read.tokens), positions=torch.arange(read.tokens), **read.whole)
    figures = {name: float(value) for name, value in found.compute().items() if name != "by_position"}
    share = text.count("e") / len(text)
    places = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert figures["loss"] == 0 and figures["perplexity"] == 1  # of its tokens
    assert figures["bits_per_byte"] == pytest.approx(min(places + 8 * (1 - share), 8))
    assert figures["bits_per_word"] == pytest.approx(figures["bits_per_byte"] * read.bytes / read.words)
    assert figures["word_perplexity"] == pytest.approx(2 ** figures["bits_per_word"], rel=1e-4)


UNKNOWN = tokenizers.Tokenizer(models.WordLevel({"?": 0, "a": 1, "sea": 2}, unk_token="?"))
UNKNOWN.pre_tokenizer = pre_tokenizers.WhitespaceSplit()


def test_the_token_for_the_unknown_gives_nothing_back_unless_it_is_in_the_text(tmp_path: Path) -> None:
    UNKNOWN.save(str(tmp_path / "made.json"))
    tokenizer = SavedTokenizer(tmp_path / "made.json")
    for text, given in [
        (b"a sea", b"a sea"),
        (b"a big sea", b"a sea"),
        (b"a\n\nsea", b"a sea"),
        (b"a ? sea", b"a ? sea"),
        (b"a ? big\nsea", b"a ? ? sea"),  # which of them stands for itself cannot be told
        (b"unknown", b""),
    ]:
        assert tokenizer.given_back(text, tokenizer.encode(text)) == given


def test_a_tokenizer_that_folds_is_told_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tokenizers.Tokenizer(models.BPE({chr(i): i for i in range(128)}, []))
    made.normalizer, made.decoder = normalizers.Lowercase(), decoders.Fuse()
    made.save(str(tmp_path / "made.json"))
    for split, text in {"train": "Any", "validation": "Ten Capital Letters. ", "test": "no capitals"}.items():
        write(tmp_path / split, "txt", [[text * 10]])
    task = make(tmp_path, tokenizer=str(tmp_path / "made.json"), batch_size=1)
    assert capsys.readouterr().err == (
        f"memlab: warning: task.tokenizer={tmp_path}/made.json does not give back 30 of the 210 bytes of the "
        "validation split (14.3%); bits per byte count what it takes to put them back\n"
    )
    assert task.amounts("validation").read == {
        **{"documents": 1, "tokens": 210, "bytes": 210, "words": 30},
        "lost_bytes": 30,
    }
    assert task.amounts("validation").patch_bits == Patch(180, 30, 30).bits
    assert task.amounts("test").lost_bytes == task.amounts("test").patch_bits == 0


def test_tokenizers_that_give_back_all_have_the_bits_of_their_tokens(tmp_path: Path) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / split, "txt", [["Some text, é 中\n of all sorts. " * 9]])
    for tokenizer in ("bytes", "bpe"):
        task = make(tmp_path, tokenizer=tokenizer, bpe_size=270, cache_dir=str(tmp_path / "cache"))
        read = task.amounts("test")
        assert task.tokenizer.lossless and (read.lost_bytes, read.patch_bits) == (0, 0)
        given = task.tokenizer.given_back("aé".encode(), task.tokenizer.encode("aé".encode()))
        assert given == "aé".encode()
        nats = torch.rand(read.tokens, dtype=torch.float64)
        found = of_text(5)
        found.update(nats=nats, positions=torch.arange(read.tokens), **read.whole)
        assert float(found["bits_per_byte"].compute()) == float(nats.sum() / read.bytes / math.log(2))
    assert ByteTokenizer().given_back(b"\xff", ByteTokenizer().encode(b"\xff")) == b"\xff"


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["model"]["vocab"].pop("Q"),
        lambda saved: saved.update(decoder=None),
        lambda saved: saved["model"].update(end_of_word_suffix="</w>"),
        lambda saved: saved["added_tokens"].append(
            {"id": 300, "content": "é", "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
        ),
    ],
)
def test_a_byte_level_tokenizer_that_lacks_something_is_looked_at(
    tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    for split in ("train", "validation", "test"):
        write(tmp_path / split, "txt", [["Zebra é"]])
    make(tmp_path, tokenizer="bpe", bpe_size=257, cache_dir=str(tmp_path / "cache"))
    (file,) = (tmp_path / "cache").rglob("tokenizer.json")
    saved = json.loads(file.read_text())
    change(saved)
    (tmp_path / "made.json").write_text(json.dumps(saved))
    tokenizer = SavedTokenizer(tmp_path / "made.json")
    text = "Zebra é".encode()
    assert not tokenizer.lossless
    assert SavedTokenizer(file).lossless
    lost = patch(text, tokenizer.given_back(text, tokenizer.encode(text))).lost
    assert lost == len(text) - longest(text, tokenizer.given_back(text, tokenizer.encode(text)))
