"""Tasks in words with tokenizers of all sorts: exact lengths, whole sentences, places, answers, mistakes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers

from memlab.errors import ConfigError, UserError
from memlab.splits import SPLITS
from memlab.tasks.facts_text import FactsText
from memlab.tasks.needle_text import KEYS, VALUES, NeedleText
from memlab.tasks.passages import REPEATED
from memlab.tasks.passkey_text import PasskeyText
from memlab.tasks.prose import ProseTask
from tests.tasks import promises
from tests.text import made

SIZES: dict[str, Any] = {
    **{"segment_length": 90, "length": None, "num_segments": 3, "segment_lengths": None, "align": None},
    **{"batch_size": 4, "validation_size": 50, "test_size": 70},
}
HIDDEN: dict[str, Any] = {"depth": None, "depths": 1, "last_segment": False}
OWN: dict[str, tuple[type[ProseTask], dict[str, Any]]] = {
    "passkey": (PasskeyText, {"digits": 5, "filler": "repeated", **HIDDEN}),
    "numbers": (NeedleText, {"digits": 4, "needles": 3, "filler": "generated", **HIDDEN}),
    "words": (NeedleText, {"digits": None, "needles": 3, "filler": "repeated", **HIDDEN}),
    "detect": (FactsText, {"story": "detect", "filler": "generated"}),
    "reason": (FactsText, {"story": "reason", "filler": "generated"}),
}
KINDS = ["words", "bytes", *made.KINDS]


@pytest.fixture(scope="module", autouse=True)
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("models")
    for kind, make_one in made.KINDS.items():
        made.directory(place / kind, make_one())
    return place


def make(place: Path, name: str, tokenizer: str = "words", **changes: Any) -> Any:
    """A prepared task; segments of bytes are longer."""
    kind, own = OWN[name]
    longer = {"segment_length": 400} if tokenizer == "bytes" and "length" not in changes else {}
    known = str(place / tokenizer) if tokenizer in made.KINDS else tokenizer
    task = kind(**{**SIZES, **own, "tokenizer": known, **longer, **changes})
    task.prepare()
    return task


def texts(task: Any, rows: Any) -> list[str]:
    """As a person reads them, in one spelling for all tokenizers."""
    found = [task.language.tokenizer.decode(row) for row in rows.tolist()]
    return ["".join(text.lower().split()) for text in found]


def squeezed(text: str) -> str:
    return "".join(text.lower().split())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OWN)
def test_a_sample_is_whole_sentences_in_exactly_so_many_tokens(place: Path, name: str, kind: str) -> None:
    task = make(place, name, kind)
    for split in SPLITS:
        batch = task.batch(split, 3, 6, seed=1)
        assert batch.tokens_BT.shape == (6, task.tokens) and task.tokens == sum(task.segment_lengths)
        rows = promises.whole(batch)
        assert rows.max() < task.vocab_size and len({row.tobytes() for row in rows}) == 6
        for row, text in zip(rows, texts(task, rows), strict=True):
            where = [text.find(squeezed(sentence)) for sentence in sentences_of(task, text)]
            assert min(where) >= 0
            assert row[: len(task.language.begin)].tolist() == task.language.begin.tolist()


def sentences_of(task: Any, text: str) -> list[str]:
    """What has to be in a sample, known from its end."""
    found = [task.introduction]
    if isinstance(task, PasskeyText):
        key = text[text.rindex("is") + 2 :]
        assert len(key) == 5 and key.isdigit() and text.count(key) == 3
        return [*found, f"The pass key is {key}. Remember it. {key} is the pass key.", REPEATED[0]]
    if isinstance(task, NeedleText):
        key = text[text.rindex("ofthe") + 5 : text.rindex("is")]
        assert key in KEYS
        value = text[text.rindex("is") + 2 :]
        values = VALUES if task.digits is None else [value]
        assert any(v.startswith(value) for v in values)
        assert len(Counter(k for k in KEYS if f"ofthe{k}is" in text)) == 3
        return [*found, f"of the {key} is {value}", f"What is the {task.kind} of the {key}?"]
    assert text.count("whereis") == 1 and "?" in text
    return [*found, "is in the"]


@pytest.mark.parametrize("kind", ["words", "bytes", "gpt2", "smollm", "bert", "llama"])
def test_tokens_are_those_of_the_text(place: Path, kind: str) -> None:
    """From the first whole sentence of the filler to the end."""
    task = make(place, "numbers", kind)
    language = task.language
    for row in promises.whole(task.batch("test", 0, 5)):
        text = language.tokenizer.decode(row.tolist())
        at = text.index(". the" if kind in ("words", "bert") else ". The", len(task.introduction) + 2)
        again = language.encode(text[at:])[len(language.encode(".")) :]
        assert row[-len(again) :].tolist() == again.tolist() and len(again) > 150


@pytest.mark.parametrize("kind", KINDS)
def test_answers_begin_where_they_differ_and_have_the_same_length(place: Path, kind: str) -> None:
    for name in OWN:
        task = make(place, name, kind)
        rows = promises.whole(task.batch("train", 0, 60))
        answers = rows[:, -task.answer_tokens :]
        before = rows[:, -task.answer_tokens - 1]
        assert kind == "joined" or len(set(before.tolist())) == 1
        assert len(set(answers[:, 0].tolist())) > 1
        if name in ("detect", "reason"):  # bathroom and bedroom have the same first letter
            assert len({tuple(a) for a in answers.tolist()}) == 6
            assert task.answer_tokens <= 2 and task.answer_tokens == {"words": 1, "bytes": 2}.get(
                kind, task.answer_tokens
            )
        if name == "passkey":
            digits = {"words": 5, "bytes": 5, "smollm": 5}
            assert task.answer_tokens == digits.get(kind, task.answer_tokens) and task.answer_tokens <= 5


def test_only_numbers_of_the_usual_size_occur(place: Path) -> None:
    task = make(place, "passkey", "gpt2")
    sizes = Counter(len(task.language.after(f"is {n}")) for n in range(10_000, 100_000, 97))
    assert len(sizes) > 1, "this tokenizer writes numbers in different lengths"
    assert task.answer_tokens + task.answers.shared + 1 == sizes.most_common(1)[0][0]
    promises.check_chance(task, 1000)
    promises.check_disjoint(task, 200, 40)


@pytest.mark.parametrize("name", OWN)
def test_promises_of_other_options(place: Path, name: str) -> None:
    """Conformance has the files of configs/task/ as they are."""
    changes: dict[str, Any] = {"numbers": {"digits": 1}}.get(name, {})
    task = make(place, name, **changes, **{} if name == "reason" else {"filler": text_directory(place)})
    promises.check_shapes(task)
    promises.check_own_words(task)
    promises.check_streams(task, make(place, name, batch_size=7, filler=task.filler, **changes))
    promises.check_disjoint(task, 300, 60)
    promises.check_options(task)


def text_directory(place: Path) -> str:
    """A directory of stories, in which something is forbidden to each task."""
    folder = place / "stories" / "deep"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(3):
        lines = [
            f"Line {number} {i} says that the sea is {'very ' * (i % 4)}wide, and {word} too."
            + "\n" * (i % 3)
            for i, word in enumerate(made.TEXT[0:1] * 8 + ["Mary", "a key", "the castle"] * 40)
        ]
        (folder / f"{number}.txt").write_text(" ".join(lines), encoding="utf-8")
    return str(place / "stories")


def test_filler_of_a_directory_has_no_word_of_the_task_and_no_sentence_in_two_splits(place: Path) -> None:
    seen: dict[str, set[str]] = {}
    for name, word in [("detect", "mary"), ("passkey", "key"), ("words", "castle")]:
        task = make(place, name, filler=text_directory(place))
        for split in SPLITS:
            seen[split] = set(task.language.passages.sentences(split))
            assert seen[split] and not any(word in s.lower().split() for s in seen[split])
        assert not seen["train"] & seen["test"] and not seen["validation"] & seen["test"]
    rows = promises.whole(make(place, "detect", filler=text_directory(place)).batch("test", 0, 9))
    assert all("thesea" in text for text in texts(make(place, "detect", filler=text_directory(place)), rows))


# Places


@pytest.mark.parametrize("kind", ["words", "smollm"])
def test_depth_is_where_the_option_puts_the_sentence(place: Path, kind: str) -> None:
    for name in ("passkey", "numbers"):
        for depth in (0.0, 0.5, 1.0):
            batch = make(place, name, kind, depth=depth).batch("test", 0, 12)
            assert batch.depth_B == pytest.approx(np.full(12, depth), abs=0.1)
        anywhere = make(place, name, kind).batch("test", 0, 60).depth_B
        assert len(set(anywhere.tolist())) > 8 and anywhere.min() < 0.1 and anywhere.max() > 0.9


def test_depth_is_counted_in_tokens(place: Path) -> None:
    task = make(place, "passkey")
    batch = task.batch("test", 0, 60)
    starts = np.array([row.index("is", 12) for row in words_of(task, batch.tokens_BT)])
    last = task.tokens - task.segment_lengths[-1]
    assert (starts + 14 <= last).all(), "the announcement stands before the last segment"
    order = np.argsort(batch.depth_B, kind="stable")
    assert (np.diff(starts[order]) >= 0).all() and np.ptp(starts) > 0.7 * last


def words_of(task: Any, rows: Any) -> list[list[str]]:
    found = [[task.word(token).lower() for token in row] for row in rows.tolist()]
    return [
        ["is" if w[i - 2 : i + 1] == ["pass", "key", "is"] else "." for i, _ in enumerate(w)] for w in found
    ]


def test_depths_make_a_grid_of_the_same_samples(place: Path) -> None:
    task = make(place, "numbers", depths=5, segment_length=150)
    assert task.members == 5
    batch = task.batch("test", 0, 20)
    assert batch.depth_B == pytest.approx(np.tile(np.linspace(0, 1, 5), 4), abs=0.04)
    answers = batch.targets_BT[:, task.answer_positions()].reshape(4, 5, -1)
    assert (answers == answers[:, :1]).all() and len(np.unique(answers[:, 0], axis=0)) == 4
    counts = [Counter(row) for row in batch.tokens_BT.tolist()]
    assert counts[0] == counts[1] == counts[4] != counts[5]
    promises.check_disjoint(task, 300, 60)


def test_a_last_segment_may_have_the_answer_if_it_is_allowed_to(place: Path) -> None:
    both = [make(place, "passkey", last_segment=allowed) for allowed in (False, True)]
    found = []
    for task in both:
        last = words_of(task, task.batch("test", 0, 60).tokens_BT[:, -task.segment_lengths[-1] :])
        found.append(sum(row.count("is") > 1 for row in last))  # more than the question's own
        assert task.needs_memory == (not task.last_segment)
    assert found[0] == 0 and 8 < found[1] < 40


# Sizes


def test_lengths_of_an_evaluation_are_exact_numbers_of_tokens(place: Path) -> None:
    task = make(place, "passkey", "smollm")
    for length, first in [(270, 90), (271, 1), (1000, 10), (89, 89), (360, 90)]:
        longer = task.sized(length)
        assert longer.tokens == length and longer.batch("test", 0, 2).tokens_BT.shape == (2, length)
        assert longer.segment_lengths[0] == first and set(longer.segment_lengths[1:]) <= {90}
    with pytest.raises(
        ConfigError, match=r"task\.length=60: segments of \[60\] tokens are too short for a st"
    ):
        task.sized(60)
    facts = make(place, "detect")
    assert facts.sized(5).segment_lengths == (90,) * 5 and facts.sized(5).tokens == 450


def test_stages_grow_by_segments_and_leave_out_what_is_too_short(place: Path) -> None:
    assert [len(stage.segment_lengths) for stage in make(place, "detect").stages()] == [1, 2, 3]
    small = make(place, "numbers", segment_length=60)
    assert [len(stage.segment_lengths) for stage in small.stages()] == [2, 3]
    promises.check_stages(make(place, "detect"), lambda task, read: truth(task, read))


def truth(task: Any, read: list[int]) -> list[int]:
    """The place of the only fact, by its words."""
    words = [task.word(token) for token in read]
    return [read[words.index("to") + 2]]


# Mistakes


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tokenizer": "pretrained"},
            r"task\.tokenizer=pretrained is the tokenizer of backbone=pretrained, which",
        ),
        (
            {"tokenizer": "no.json"},
            r"task\.tokenizer=no\.json: there is no such file; allowed are words, bytes, ",
        ),
        (
            {"filler": "nowhere"},
            r"task\.filler=nowhere: there is no such directory; allowed are repeated, gen",
        ),
        ({"filler": "empty"}, r"task\.filler=.*empty: there are no \.txt files in this directory; generated"),
        (
            {"filler": "short"},
            r"task\.filler=.*short: its 1 \.txt files have no sentence for (train|valid|test)",
        ),
        ({"filler": "latin"}, r"task\.filler: .*a\.txt is not UTF-8 text \(byte 2\)"),
        ({"depth": 0.5, "depths": 3}, r"task\.depth=0\.5 and task\.depths=3: the first sets one place"),
        (
            {"segment_length": 15},
            r"task\.length=45: segments of \[15, 15, 15\] tokens are too short for a story",
        ),
        (
            {"segment_length": None},
            r"task\.segment_length and task\.length both set .*, and neither is given",
        ),
        (
            {"segment_lengths": [200, 60, 10]},
            r"task\.length=270: segments of \[200, 60, 10\] tokens are too short",
        ),
    ],
)
def test_mistakes_are_told_when_the_task_is_made(
    place: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    for folder, content in [("empty", None), ("short", b"Three. Small. Words."), ("latin", b"No\xe9. A. B")]:
        (tmp_path / folder).mkdir()
        if content is not None:
            (tmp_path / folder / "a.txt").write_bytes(content)
    if changes.get("filler") in ("empty", "short", "latin"):
        changes = {"filler": str(tmp_path / changes["filler"])}
    with pytest.raises(ConfigError, match=said):
        make(place, "passkey", **changes)


def test_too_many_needles_and_an_encoder(place: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.needles=27: there are only 26 different keys"):
        make(place, "words", needles=27)
    with pytest.raises(ConfigError, match=r"task\.length=270: .* too short"):
        make(place, "words", needles=26)
    with pytest.raises(ConfigError, match=r"makes only 96 different samples"):
        make(place, "detect", filler="repeated")


def test_a_tokenizer_that_does_not_tell_answers_apart(place: Path) -> None:
    vocabulary = {word: i for i, word in enumerate(["[UNK]", "<s>", ".", "The", "the", "is", "1", "key"])}
    saved = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    saved.pre_tokenizer = pre_tokenizers.Whitespace()
    saved.add_special_tokens(["<s>"])
    few = made.directory(place / "few", saved)
    for name in ("passkey", "detect", "words"):
        with pytest.raises(
            UserError, match=r"task\.tokenizer=.*few: it writes the answers \w+ and \w+ in the"
        ):
            make(place, name, tokenizer=few)
    nothing = tokenizers.Tokenizer(models.BPE({"1": 0, "0": 1, **{str(d): d for d in range(2, 10)}}, []))
    nothing.add_special_tokens(["<s>"])
    with pytest.raises(UserError, match=r"task\.tokenizer=.*none makes no token of the filler"):
        make(place, "passkey", tokenizer=made.directory(place / "none", nothing))
