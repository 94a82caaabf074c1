"""The fact tasks, by their words: an oracle that parses what a person reads,
and observers that see only a part of it.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import memlab
from memlab.config import schema
from memlab.config.checks import check
from memlab.config.cli import compose_checked
from memlab.errors import ConfigError
from memlab.splits import SPLITS, Split
from memlab.tasks.detect_fact import DetectFact
from memlab.tasks.draws import Ints
from memlab.tasks.facts import FactTask, pairs_of_gaps, stack_gaps
from memlab.tasks.filler import FILLER_WORDS
from memlab.tasks.memorize_fact import MemorizeFact
from memlab.tasks.reason_facts import ReasonFacts
from tests.tasks.oracles.facts import HAS, MOVED, WHERE
from tests.tasks.oracles.facts import answer as oracle
from tests.tasks.promises import check_shapes, check_streams, near, whole
from tests.training import resuming

ROOT = Path(memlab.__file__).parents[1]
TASKS: dict[str, tuple[type[FactTask], dict[str, Any]]] = {
    "memorize_fact": (MemorizeFact, {}),
    "detect_fact": (DetectFact, {"depth": None}),
    "reason_facts": (ReasonFacts, {"persons": 2}),
}
COMMON: dict[str, Any] = {
    "segment_length": 24,
    "length": None,
    "num_segments": 4,
    "noise_dir": None,
    "noise_words": 60,
}
SIZES: dict[str, Any] = {
    "segment_lengths": None,
    "align": None,
    "batch_size": 4,
    "validation_size": 50,
    "test_size": 70,
}
PLACES = {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}
PERSONS = {"Daniel", "John", "Mary", "Sandra"}
EACH = [
    ("memorize_fact", {}),
    ("detect_fact", {}),
    ("detect_fact", {"depth": 0.7}),
    ("reason_facts", {}),
    ("reason_facts", {"persons": 3}),
]
each = pytest.mark.parametrize(("name", "changes"), EACH)


def make(name: str, **changes: Any) -> Any:
    task, own = TASKS[name]
    return task(**(COMMON | SIZES | own | changes))


def read(task: FactTask, rows: Ints) -> list[list[str]]:
    return [[task.word(token) for token in row] for row in rows.tolist()]


def samples(task: FactTask, split: Split, count: int, start: int = 0) -> list[list[str]]:
    """Words of whole samples, the answer last."""
    return read(task, whole(task.batch(split, start, count)))


def facts_of(words: list[str]) -> list[tuple[int, int]]:
    """Where facts stand: begin and end, in words."""
    text = " ".join(words)
    spans = [match.span() for pattern in (MOVED, WHERE, HAS) for match in pattern.finditer(text)]
    return sorted((text[:begin].count(" "), text[:end].count(" ") + 1) for begin, end in spans)


@pytest.mark.parametrize("split", SPLITS)
@each
def test_an_oracle_is_always_right(name: str, changes: dict[str, Any], split: Split) -> None:
    for segments in (1, 2, 4, 7):
        rows = samples(make(name, num_segments=segments), split, 200)
        assert [oracle(row[:-1]) for row in rows] == [row[-1] for row in rows]


@each
def test_a_sample_is_facts_in_filler_then_the_question(name: str, changes: dict[str, Any]) -> None:
    """Nothing of the world stands outside facts and question, and filler is sentences of the generated
    words in order.
    """
    task = make(name, **changes)
    persons = task.persons if name == "reason_facts" else 1
    question = 5 if name == "reason_facts" else 4
    fillers = [set(FILLER_WORDS[place::4]) for place in range(4)]
    kinds = [{"the"}, *fillers, {"."}]
    begins_in = set()
    for row in samples(task, "train", 300, start=5):
        words, answer = row[:-1], row[-1]
        spans = facts_of(words)
        assert [end - begin for begin, end in sorted(spans, key=lambda s: s[1] - s[0])] == (
            [5, 6 * persons] if question == 5 else [6]
        )
        told = {i for begin, end in spans for i in range(begin, end)}
        assert answer in PLACES and len(told) == sum(end - begin for begin, end in spans)
        rest = {i: word for i, word in enumerate(words[:-question]) if i not in told}
        (phase,) = (
            phase for phase in range(6) if all(word in kinds[(i + phase) % 6] for i, word in rest.items())
        )
        begins_in.add(phase)
        mentioned = [words[i] for i in sorted(told)]
        assert sum(word in PLACES for word in mentioned) == persons == len(PLACES & set(mentioned))
        assert len(PERSONS & set(mentioned)) == persons
    assert begins_in == set(range(6)), "a sample begins anywhere in a sentence"


@each
def test_the_promises_of_every_task_are_kept_with_other_options(name: str, changes: dict[str, Any]) -> None:
    if changes:
        check_shapes(make(name, **changes))
        check_streams(make(name, **changes), make(name, **changes))
    for segments in (1, 2):
        check_streams(make(name, num_segments=segments), make(name, num_segments=segments))


def test_stories_are_never_shared_by_splits_even_where_few_are_possible() -> None:
    """Filler of one word for each place in a sentence: 6 fillers, 96 stories, 68 places;
    of so many draws most come up again and again.
    """
    task = make("detect_fact", noise_words=4)
    with pytest.raises(ConfigError, match=r"task\.length=96 makes only 96 different samples; at least 200"):
        make("memorize_fact", noise_words=4)
    seen = {split: {row.tobytes() for row in whole(task.batch(split, 0, 15000))} for split in SPLITS}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert task.distinct == 96 * 67 and len(seen["train"]) < 14000 and len(seen["test"]) < 5000


def test_reasoning_samples_with_the_same_facts_are_in_one_split() -> None:
    """All holders of a story are in the split of its first; so no split tells another the pairing of facts
    it knows.
    """
    task = make("reason_facts", noise_words=4, segment_length=26, num_segments=2)
    stories = {}
    for split in SPLITS:
        rows = samples(task, split, 3000)
        stories[split] = {tuple(words if words not in PERSONS else "_" for words in row[:-1]) for row in rows}
        first = [tuple(WHERE.findall(" ".join(row))) for row in rows]
        assert first[0::2] == first[1::2]
        holders = [HAS.findall(" ".join(row))[0][0] for row in rows]
        assert all(one != other for one, other in zip(holders[0::2], holders[1::2], strict=True))
    contents = {split: {row.tobytes() for row in whole(task.batch(split, 0, 6000))} for split in SPLITS}
    for one, other in itertools.combinations(contents.values(), 2):
        assert not one & other


# Where facts stand


def begins(task: FactTask, count: int) -> list[list[tuple[int, int]]]:
    return [facts_of(row[:-1]) for row in samples(task, "train", count)]


@pytest.mark.parametrize(
    "sizes",
    [{}, {"num_segments": 2}, {"length": 100, "segment_length": None, "num_segments": 3, "align": "right"}],
)
@pytest.mark.parametrize("name", TASKS)
def test_no_fact_is_in_the_segment_of_the_question(name: str, sizes: dict[str, Any]) -> None:
    task = make(name, **sizes)
    before = task.tokens - task.segment_lengths[-1]
    for row in samples(task, "train", 1500):
        assert all(end <= before for _, end in facts_of(row[:-1]))
        assert not (PLACES | PERSONS if name == "reason_facts" else PLACES) & set(row[before:-1])


def test_a_fact_to_memorize_is_at_the_very_start() -> None:
    assert {tuple(spans) for spans in begins(make("memorize_fact"), 300)} == {((0, 6),)}


@pytest.mark.parametrize(
    ("sizes", "last"), [({}, 66), ({"num_segments": 2}, 18), ({"num_segments": 1, "segment_length": 60}, 50)]
)
def test_a_fact_to_detect_begins_at_every_token_before_the_question_as_often(
    sizes: dict[str, int], last: int
) -> None:
    """Also across a boundary of segments, which cuts it in two."""
    counts = Counter(span[0][0] for span in begins(make("detect_fact", **sizes), 15000))
    assert sorted(counts) == list(range(last + 1))
    assert all(near(count / 15000, 1 / (last + 1), 15000) for count in counts.values())


@pytest.mark.parametrize(("depth", "begin"), [(0.0, 0), (1.0, 66), (0.5, 33)])
def test_depth_says_where_the_fact_is(depth: float, begin: int) -> None:
    assert {tuple(spans) for spans in begins(make("detect_fact", depth=depth), 100)} == {
        ((begin, begin + 6),)
    }


def test_facts_to_reason_with_are_anywhere_in_either_order() -> None:
    """Room of 21 tokens for facts of 12 and 5: 2 orders of the 15 ways to put 4 tokens before,
    between and behind.
    """
    counts = Counter(
        tuple(spans) for spans in begins(make("reason_facts", segment_length=21, num_segments=2), 12000)
    )
    ways = [
        ((a, a + n), (a + n + b, a + n + b + m))
        for n, m in ((12, 5), (5, 12))
        for a in range(5)
        for b in range(5 - a)
    ]
    assert (
        set(counts) == set(ways)
        and make("reason_facts", segment_length=21, num_segments=2).arrangements == 30
    )
    assert all(near(count / 12000, 1 / 30, 6000) for count in counts.values())  # 6000 pairs of samples


@pytest.mark.parametrize("free", [0, 1, 5, 4000])
def test_pairs_of_gaps_are_all_pairs(free: int) -> None:
    pairs = pairs_of_gaps(free)
    numbers = np.arange(pairs, dtype=np.uint64)[-200_000:]
    a, b = stack_gaps(numbers, free)
    found = list(zip(a.tolist(), b.tolist(), strict=True))
    assert len(set(found)) == len(found) and (a >= 0).all() and (a <= b).all() and (b <= free).all()
    assert pairs == (free + 1) * (free + 2) // 2


# What can be known from a part of a sample


def seen_and_asked(task: FactTask, count: int = 5000) -> tuple[list[list[str]], list[list[str]]]:
    """Samples that an observer learns from, and samples that it is asked."""
    return samples(task, "train", count), samples(task, "test", count)


def score(
    observed: tuple[list[list[str]], list[list[str]]],
    feature: Callable[[list[str]], Hashable],
    label: Callable[[list[str]], Hashable],
) -> float:
    """How often the best guess is right that sees no more than `feature`:
    the most frequent label of the same feature in other samples.
    """
    seen: defaultdict[Hashable, Counter[Hashable]] = defaultdict(Counter)
    learned, rows = observed
    for row in learned:
        seen[feature(row[:-1])][label(row)] += 1
    best = {what: labels.most_common(1)[0][0] for what, labels in seen.items()}
    right = [best.get(feature(row[:-1])) == label(row) for row in rows]
    return sum(right) / len(right)


@pytest.mark.parametrize("name", TASKS)
def test_who_sees_only_the_last_segment_scores_chance(name: str) -> None:
    task = make(name)
    last = task.segment_lengths[-1]
    assert task.chance == pytest.approx(1 / 6)
    features: list[Callable[[list[str]], Hashable]] = [
        lambda words: tuple(words[-5:]),  # the question, and where in a sentence filler ends
        lambda words: words[-last],
        lambda words: words[-last + 1],
        lambda words: words[-6],
        lambda words: Counter(words[-last:]).most_common(1)[0],
    ]
    observed = seen_and_asked(task)
    for feature in features:
        assert near(score(observed, feature, lambda row: row[-1]), 1 / 6, 5000)
    answers = Counter(row[-1] for row in samples(task, "test", 6000))
    assert all(near(answers[place] / 6000, 1 / 6, 6000) for place in PLACES)


@pytest.mark.parametrize("name", TASKS)
def test_the_same_last_segment_goes_with_every_answer_as_often(name: str) -> None:
    """Of one sample's filler, with all stories: among those with the same last segment,
    the answer is uniform.
    """
    task = make(name)
    random = np.random.Philox(key=3)
    words = np.repeat(random.random_raw(task.random_numbers)[None], 24000, axis=0)
    words[:, : task.story_numbers] = random.random_raw(24000 * task.story_numbers).reshape(24000, -1)
    rows = task.sequences(words, np.arange(24000) % task.members)
    last = rows[:, task.tokens - task.segment_lengths[-1] : -1]
    groups = np.unique(last, axis=0, return_inverse=True)[1].ravel()
    assert groups.max() == 3, "four persons or objects are asked for"
    for group in range(4):
        answers = np.bincount(rows[groups == group, -1], minlength=6)
        total = int(answers.sum())
        assert total > 5000 and len(answers) == 6
        assert all(near(count / total, 1 / 6, total) for count in answers)


@pytest.mark.parametrize("persons", [2, 3, 4])
def test_bounds_of_reasoning_by_enumeration_of_the_world(persons: int) -> None:
    """Every story of the world, told by plain Python: the best guess from each fact, over all stories,
    is right so often exactly.
    """
    by_where: dict[Any, Counter[str]] = defaultdict(Counter)
    by_who: dict[Any, Counter[str]] = defaultdict(Counter)
    by_both: dict[Any, Counter[str]] = defaultdict(Counter)
    for who in itertools.permutations(sorted(PERSONS), persons):
        for where in itertools.permutations(sorted(PLACES), persons):
            for holder in range(persons):
                by_where[who, where][where[holder]] += 1
                by_who[who[holder]][where[holder]] += 1
                by_both[who, where, who[holder]][where[holder]] += 1

    def bound(seen: dict[Any, Counter[str]]) -> Fraction:
        return Fraction(sum(max(c.values()) for c in seen.values()), sum(c.total() for c in seen.values()))

    assert (bound(by_where), bound(by_who), bound(by_both)) == (Fraction(1, persons), Fraction(1, 6), 1)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("persons", [2, 3, 4])
def test_who_misses_the_holder_is_right_once_in_p_whatever_is_guessed(persons: int, split: Split) -> None:
    """Without the holder's name, P consecutive samples are word for word the same,
    and their answers are the P places: exactly 1 / P.
    """
    task = make("reason_facts", persons=persons, segment_length=40, num_segments=3)
    rows = samples(task, split, 300)
    for start in range(0, 300, persons):
        group = rows[start : start + persons]
        assert len({HAS.sub("_ has it", " ".join(row[:-1])) for row in group}) == 1
        named = WHERE.findall(" ".join(group[0]))[0]
        assert (
            sorted(row[-1] for row in group) == sorted(PLACES & set(named.split()))
            and len({row[-1] for row in group}) == persons
        )


@pytest.mark.parametrize("persons", [2, 3])
def test_who_sees_one_fact_alone_stays_at_its_bound(persons: int) -> None:
    """Counted on samples: the best of what each part of a fact, its place and the question tell."""
    task = make("reason_facts", persons=persons, segment_length=30)

    def clause(row: list[str]) -> int:
        """Which of the persons' clauses holds the answer."""
        return [
            place for _, place in re.findall(r"(\w+) is in the (\w+)", WHERE.findall(" ".join(row))[0])
        ].index(row[-1])

    def where(words: list[str]) -> str:
        return WHERE.findall(" ".join(words))[0]

    sees_where: list[Callable[[list[str]], Hashable]] = [
        lambda words: tuple(re.findall(r"(\w+) is in", where(words))),
        lambda words: re.findall(r"in the (\w+)", where(words))[0],
        lambda words: " ".join(words).index(where(words)),
        lambda words: words[-2],
    ]
    observed = seen_and_asked(task)
    for feature in sees_where:
        assert near(score(observed, feature, clause), 1 / persons, 5000)
    sees_who: list[Callable[[list[str]], Hashable]] = [
        lambda words: HAS.findall(" ".join(words))[0],
        lambda words: " ".join(words).index(" ".join(HAS.findall(" ".join(words))[0][:1])),
        lambda words: HAS.search(" ".join(words)).group(),  # type: ignore[union-attr]
    ]
    for feature in sees_who:
        assert near(score(observed, feature, lambda row: row[-1]), 1 / 6, 5000)


def test_an_observer_that_sees_both_facts_is_found_to_know_the_answer() -> None:
    """The scorer above can tell: with both facts in its feature it comes close to 1,
    and a fact to detect gives all away.
    """

    def both(words: list[str]) -> Hashable:
        pairs = re.findall(r"(\w+) is in the (\w+)", WHERE.findall(" ".join(words))[0])
        return (
            [person for person, _ in pairs].index(HAS.findall(" ".join(words))[0][0]),
            pairs[0][1],
            pairs[1][1],
        )

    assert score(seen_and_asked(make("reason_facts")), both, lambda row: row[-1]) == 1
    assert (
        score(
            seen_and_asked(make("detect_fact")),
            lambda words: MOVED.findall(" ".join(words))[0][1],
            lambda row: row[-1],
        )
        == 1
    )


# Sizes


@each
def test_stages_and_at_change_the_number_of_segments_alone(name: str, changes: dict[str, Any]) -> None:
    task = make(name, **changes)
    # with three persons, one segment has no room for facts of 23 tokens
    fewest = 1 if changes.get("persons", 2) == 2 else 2
    assert [stage.num_segments for stage in task.stages(one_answer=True)] == list(range(fewest, 5))
    assert all(set(stage.segment_lengths) == {24} for stage in task.stages())
    assert task.stages()[-1] is task and task.at(4) is task
    longer = task.at(10)
    assert (
        longer.segment_lengths == (24,) * 10
        and longer.options() == make(name, **changes, num_segments=10).at(3).options()
    )
    assert (
        whole(longer.batch("test", 0, 30))
        == whole(make(name, **changes, num_segments=10).batch("test", 0, 30))
    ).all()
    for stage in (*task.stages(), longer):
        assert (stage.vocab_size, stage.chance, stage.answer_tokens) == (task.vocab_size, task.chance, 1)
        check_shapes(stage)
    assert (whole(longer.at(4).batch("test", 0, 5)) == whole(task.batch("test", 0, 5))).all(), "and back"


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_one_of_six_tokens(name: str) -> None:
    """So the task is a six-way classification for a model that answers once."""
    task = make(name)
    answers = task.batch("train", 0, 500).targets_BT[:, -1]
    assert set(answers.tolist()) == set(range(6)) and {task.word(token) for token in range(6)} == PLACES
    assert task.answer_positions() == [task.tokens - 1]


@pytest.mark.parametrize("name", TASKS)
def test_lengths_may_be_told_in_other_ways(name: str) -> None:
    assert make(name, segment_length=None, length=96).segment_lengths == (24,) * 4
    assert make(name, segment_length=None, length=90, align="right").segment_lengths == (21, 23, 23, 23)
    assert make(name, segment_lengths=[60, 36]).segment_lengths == (60, 36)
    one, other = make(name), make(name, segment_length=None, length=96)
    assert (whole(one.batch("test", 0, 9)) == whole(other.batch("test", 0, 9))).all()
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[60, 36\] are not equal"):
        make(name, segment_lengths=[60, 36]).at(3)


def test_mistakes_are_told_with_what_is_allowed() -> None:
    with pytest.raises(
        ConfigError, match=r"task\.segment_length and task\.length .* both are given \(24 and 96\)"
    ):
        make("detect_fact", length=96)
    with pytest.raises(ConfigError, match=r"task\.segment_length and task\.length .* neither is given"):
        make("detect_fact", segment_length=None)
    with pytest.raises(ConfigError, match=r"last of segments \[4, 4\] is too short: the question has 5"):
        make("reason_facts", segment_length=4, num_segments=2)
    with pytest.raises(
        ConfigError,
        match=r"segments \[16, 16\] leave 16 tokens for facts of 17 tokens, which stand before the last",
    ):
        make("reason_facts", segment_length=16, num_segments=2)
    with pytest.raises(
        ConfigError,
        match=r"segments \[9\] leave 5 tokens for facts of 6 tokens, in addition to a question of 4",
    ):
        make("memorize_fact", segment_length=9, num_segments=1)
    for persons in (1, 5):
        with pytest.raises(ConfigError, match=rf"task\.persons={persons}: 2 to 4"):
            make("reason_facts", persons=persons)
    for words in (3, 61):
        with pytest.raises(ConfigError, match=rf"task\.noise_words={words}: generated filler has 4 to 60"):
            make("detect_fact", noise_words=words)
    with pytest.raises(ConfigError, match=r"task\.num_segments=5: the 96 tokens of task\.length=96"):
        make("detect_fact", segment_length=None, length=96, num_segments=5)


@pytest.mark.parametrize("name", TASKS)
def test_the_configuration_file_begins_with_one_segment(name: str) -> None:
    values = yaml.safe_load((ROOT / "configs" / "task" / f"{name}.yaml").read_text())["task"]
    assert schema.load(values.pop("_target_")) is TASKS[name][0] and values.pop("name") == name
    stages = TASKS[name][0](**values).stages(one_answer=True)
    assert [stage.num_segments for stage in stages] == [1, 2, 3, 4, 5]


# Filler of the user's own text


def numbered(place: Path, words: int, files: int = 2) -> str:
    """Files in which every word occurs once: f0w0 f0w1 .."""
    for i in range(files):
        (place / f"{i}.txt").write_text(" ".join(f"f{i}w{j}" for j in range(words)), encoding="utf-8")
    return str(place)


@pytest.mark.parametrize("name", TASKS)
def test_text_is_read_in_passages_of_one_file_and_splits_have_parts_of_their_own(
    name: str, tmp_path: Path
) -> None:
    noise = numbered(tmp_path, 1000)
    for split, (begin, end) in zip(SPLITS, [(0, 800), (800, 900), (900, 1000)], strict=True):
        task = make(name, noise_dir=noise, noise_words=2000)
        files = set()
        for row in samples(task, split, 150):
            words = row[:-1]
            assert oracle(words) == row[-1]
            known = [
                (i, *map(int, word[1:].split("w")))
                for i, word in enumerate(words)
                if re.fullmatch(r"f\dw\d+", word)
            ]
            if split == "train":
                assert len(known) == task.tokens - sum(b - a for a, b in facts_of(words)) - (
                    5 if name == "reason_facts" else 4
                )
                assert len({(file, number - i) for i, file, number in known}) == 1, "a contiguous passage"
                assert all(begin <= number < end for _, _, number in known)
                files |= {file for _, file, _ in known}
            else:  # words of the training parts have tokens, and here no other word occurs twice
                assert not known and words.count("(unknown)") > 60
        assert files == ({0, 1} if split == "train" else set())


def test_passages_of_each_file_are_as_many_as_it_has_and_none_leaves_its_part(tmp_path: Path) -> None:
    """A word says which file and which split's part it is in; the training part begins with the others'
    words, so that they have tokens. Random words that count up make each passage once.
    """
    sizes = (1100, 1200, 500)
    for i, n in enumerate(sizes):
        words = [
            f"validation{i}",
            f"test{i}",
            *[f"train{i}"] * (n * 8 // 10 - 2),
            *[f"validation{i}"] * (n // 10),
            *[f"test{i}"] * (n // 10),
        ]
        (tmp_path / f"{i}.txt").write_text(" ".join(words), encoding="utf-8")
    (tmp_path / "3.txt").write_text("too short", encoding="utf-8")
    task = make("memorize_fact", noise_dir=str(tmp_path), noise_words=40)
    for split, share in zip(SPLITS, (8, 1, 1), strict=True):
        passages = [max(0, n * share // 10 - 95) for n in sizes]
        numbers = np.arange(sum(passages), dtype=np.uint64)[:, None]
        rows = read(task, task.filler.tokens(numbers, 96, split))
        assert all(set(row[2:]) == {f"{split}{row[2][-1]}"} for row in rows)
        assert [sum(row[2][-1] == str(i) for row in rows) for i in range(3)] == passages
        assert {oracle(row[:-1]) == row[-1] for row in samples(task, split, 20)} == {True}


def test_the_most_frequent_words_have_tokens_and_words_of_the_world_have_none(tmp_path: Path) -> None:
    text = "Cats cats CATS sleep sleep. In the kitchen, Mary went to the garden. Rain! it's late\n" * 60
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    task = make("detect_fact", noise_dir=str(tmp_path), noise_words=3)
    words = Counter(word for row in samples(task, "train", 200) for word in row[:-1])
    assert task.vocab_size == make("detect_fact", noise_words=60).vocab_size - 57
    assert [task.word(token) for token in range(task.vocab_size - 4, task.vocab_size)] == [
        "(unknown)",
        "cats",
        "sleep",
        "!",
    ]
    # some of it is the fact, at times
    filler = Counter(word for row in samples(task, "train", 200) for word in row[6:30])
    assert filler["cats"] > filler["sleep"] > 0 and words["rain"] == words["it's"] == 0 < words["(unknown)"]
    for row in samples(task, "train", 200):
        assert oracle(row[:-1]) == row[-1] and sum(word in PLACES for word in row[:-1]) == 1
    many = make("detect_fact", noise_dir=str(tmp_path), noise_words=50)
    assert many.word(many.vocab_size - 1) == "(unused 49)"
    for row in samples(many, "train", 200):
        assert (
            sum(word.capitalize() in PERSONS for word in row[:-4])
            == 1
            == sum(word in PLACES for word in row[:-1])
        )


def test_text_is_the_same_for_every_task_that_reads_it(tmp_path: Path) -> None:
    noise = numbered(tmp_path, 3000, files=1)
    task = make("reason_facts", noise_dir=noise, noise_words=500)
    check_shapes(task)
    check_streams(task, make("reason_facts", noise_dir=noise, noise_words=500))
    assert task.at(10).filler is task.filler is task.stages()[0].filler
    words, members = (
        np.random.Philox(key=1).random_raw(20 * task.random_numbers).reshape(20, -1),
        np.zeros(20, dtype=np.int64),
    )
    task = make("reason_facts", noise_dir=noise, noise_words=500)
    before = task.sequences(words, members)
    task.batch("test", 0, 3)
    assert (task.sequences(words, members) == before).all(), (
        "a task does not remember which split was asked for"
    )


def test_a_text_that_cannot_be_read_is_one_clear_error(tmp_path: Path) -> None:
    missing = tmp_path / "no such place"
    with pytest.raises(ConfigError, match=r"task\.noise_dir=.*no such place: there is no such directory"):
        make("memorize_fact", noise_dir=str(missing))
    (tmp_path / "notes.md").write_text("not this one")
    with pytest.raises(ConfigError, match=r"task\.noise_dir=.*: there are no \.txt files in it"):
        make("memorize_fact", noise_dir=str(tmp_path))
    (tmp_path / "a.txt").write_text("too few words to fill anything")
    with pytest.raises(
        ConfigError, match=r"a sample has 96 words, the longest part of a file for train has 4 "
    ):
        make("memorize_fact", noise_dir=str(tmp_path))
    numbered(tmp_path, 900, files=1)
    with pytest.raises(
        ConfigError, match=r"a sample has 96 words, the longest part of a file for validation has 90 "
    ):
        make("memorize_fact", noise_dir=str(tmp_path))
    (tmp_path / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 900)
    with pytest.raises(ConfigError, match=r"latin\.txt is not UTF-8 text \(byte 3\)"):
        make("memorize_fact", noise_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("name", "model"),
    [("memorize_fact", "rmt_encoder"), ("detect_fact", "rmt"), ("reason_facts", "rmt_encoder")],
)
def test_encoders_and_decoders_can_be_trained_on_it(name: str, model: str, tmp_path: Path) -> None:
    """One step, and a test: of a model that answers once per sample,
    and of one that predicts the next token.
    """
    small = ["model.layers=1", "model.width=8", "model.heads=2", "trainer.max_steps=1", "trainer.threads=1"]
    sizes = ["task.num_segments=2", "task.batch_size=4", "task.validation_size=4", "task.test_size=4"]
    words = [f"model={model}", f"task={name}", *small, *sizes, "tracking=off", f"run_dir={tmp_path / 'run'}"]
    resuming.train(compose_checked("train", words, check))
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stages"] == 2
