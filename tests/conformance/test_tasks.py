"""What every generated task must keep, for every file in configs/task/ and every value of its named options.

There is no list to edit: a new YAML is tested by being there. It needs an oracle beside it, which the first
test of this file asks for.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memlab
from memlab.config import schema
from memlab.splits import SPLITS
from memlab.tasks.base import Batch, SyntheticTask
from memlab.tasks.draws import Ints, RandomNumbers
from tests.conformance.tasks import EXAMPLE, FILES, Case, cases, is_generated
from tests.tasks import promises

ROOT = Path(memlab.__file__).parents[1]
PARITY = EXAMPLE / "task" / "parity.yaml"
Parity: Any = Case(PARITY).kind
CASES = cases()
each_file = pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
GENERATED = [file for file in FILES if is_generated(file)]
each_generated = pytest.mark.parametrize("file", GENERATED, ids=lambda file: file.stem)
each = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@each_generated
def test_there_is_an_oracle(file: Path) -> None:
    assert callable(Case(file).solve())


@each_file
def test_yaml_is_the_constructors_arguments(file: Path) -> None:
    case = Case(file)
    arguments = schema.parameters(case.target)
    assert case.values["name"] == file.stem
    assert case.values.keys() - {"_target_", "name"} == arguments.keys()
    assert all(parameter.words != "Any" for parameter in arguments.values()), "an argument says what it takes"
    for key, parameter in arguments.items():
        schema.check_value(key, case.values[key], parameter.annotation)
    first = next(line for line in file.read_text(encoding="utf-8").splitlines() if "@package" not in line)
    assert first.startswith("# "), "the YAML is the manual: its first line says what the task is"
    case.make()


@each
def test_samples_are_as_the_task_declares(case: Case) -> None:
    promises.check_shapes(case.make())


@each
def test_a_sample_is_made_of_seed_split_and_index_alone(case: Case) -> None:
    promises.check_streams(case.make(), case.make(batch_size=2 * case.values["batch_size"]))
    promises.check_own_words(case.make())


@each
def test_splits_are_disjoint(case: Case) -> None:
    """At the file's size, and at the smallest that a curriculum has, where contents come up again."""
    task = case.make()
    promises.check_disjoint(task, 500, 100)
    promises.check_disjoint(task.stages()[0])


@each
def test_training_never_repeats(case: Case) -> None:
    promises.check_never_repeats(case.make())


@each
def test_an_oracle_is_always_right(case: Case) -> None:
    promises.check_oracle(case.make(), case.solve())


@each_generated
def test_chance_is_what_the_best_constant_guess_scores(file: Path) -> None:
    promises.check_chance(Case(file).make())


@each
def test_the_last_segment_alone_gives_nothing_away(case: Case) -> None:
    task = case.make()
    if task.needs_memory:
        promises.check_last_segment(task)
    else:  # an option may let the answer stand there, but not the file as it is
        assert case.changes and Case(case.file).make().needs_memory


@each
def test_a_curriculum_ends_with_the_task(case: Case) -> None:
    task = case.make()
    promises.check_options(task)
    promises.check_stages(task, case.solve())


# Other processes

HEAVY = {"torch", "lightning", "mlflow", "datasets", "pyarrow", "tokenizers", "huggingface_hub"}
IN_A_PROCESS = """
import sys
from tests.conformance.test_tasks import CASES, FILES, HEAVY, Case, digest
for file in FILES:
    Case(file).make()
assert not HEAVY & sys.modules.keys(), "configuring a task imports nothing heavy"
print(*(digest(case) for case in CASES))
"""


def digest(case: Case) -> str:
    task, found = case.make(), hashlib.sha256()
    for split in SPLITS:
        batch = task.batch(split, 11, 23, seed=5)
        for array in (batch.tokens_BT, batch.targets_BT, batch.answer_BT):
            found.update(array.astype(np.int64).tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("hash_seed", ["1", "2"])
def test_another_process_makes_the_same_samples(hash_seed: str) -> None:
    """Nothing depends on the process: not on its hash seed, not on a generator's state."""
    np.random.seed(99)
    own = [digest(case) for case in CASES]
    done = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == own


# A user's own task


def test_a_task_of_a_user_is_a_file_and_a_yaml() -> None:
    """Nothing of memlab names it, and a command finds it."""
    assert PARITY in FILES and not list(ROOT.glob("memlab/**/parity*"))
    done = subprocess.run(
        [sys.executable, "-m", "memlab.show", "--config-dir", str(EXAMPLE), "task=parity", "samples=1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLE}"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("parity, train: 4 segments of [6, 6, 6, 6] tokens; 1 answer tokens")


def test_a_task_without_an_oracle_is_named(tmp_path: Path) -> None:
    (tmp_path / "task").mkdir()
    file = tmp_path / "task" / "nobody_solves_me.yaml"
    file.write_text(PARITY.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(AssertionError, match=r"write tests/tasks/oracles/nobody_solves_me\.py with solve"):
        Case(file).solve()


# What the suite is for: each of these is found


class Leaky(Parity):
    """The question names the answer, in two ways that are as likely."""

    vocab_size = 7

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = super().sequences(random_BW, member_B)
        rows[:, -2] = 3 + rows[:, -1] + 2 * rows[:, 0]
        return rows


class Hinting(Parity):
    """The last bit that is read is the answer in 6 of 10 samples."""

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = super().sequences(random_BW, member_B)
        told = (random_BW[:, 0] >> np.uint64(8)) % np.uint64(5) == 0
        rows[told, -3] = rows[told, -1]
        return rows


class Wrong(Parity):
    """One answer in a hundred is wrong."""

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = super().sequences(random_BW, member_B)
        rows[random_BW[:, 0] % np.uint64(97) == 0, -1] ^= 1
        return rows


class Skewed(Parity):
    """Of up to eleven ones the answer is always even: a constant guess is right more often than `chance`."""

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = super().sequences(random_BW, member_B)
        rows[rows[:, :-2].sum(axis=1) < 12, -1] = 0
        return rows


class OneStream(Parity):
    """All splits read the same samples."""

    def _draw(self, split: Any, start: int, count: int, seed: int) -> Ints:
        return super()._draw("train", start, count, seed)


class Round(Parity):
    """The stream begins anew after 5,000 samples."""

    def _draw(self, split: Any, start: int, count: int, seed: int) -> Ints:
        return super()._draw(split, start % 5_000, count, seed)


class Remembering(Parity):
    """A sample depends on how many were made before it."""

    made = 0

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        Remembering.made += 1
        rows = super().sequences(random_BW, member_B)
        rows[:, 0] ^= Remembering.made % 2
        return rows


class Elsewhere(Parity):
    """The answer is said to be where it is not."""

    def batch(self, split: Any, start: int, count: int, seed: int = 0) -> Batch:
        batch = super().batch(split, start, count, seed)
        return Batch(
            batch.tokens_BT, batch.targets_BT, np.roll(batch.answer_BT, 1, axis=1), batch.segment_lengths
        )


class Forgetful(Parity):
    """An argument that `options` does not name is lost at another size."""

    def __init__(self, flipped: bool = False, **sizes: Any) -> None:
        self.flipped = flipped
        super().__init__(**sizes)

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = super().sequences(random_BW, member_B)
        rows[:, -1] ^= self.flipped
        return rows


def parity(kind: type[SyntheticTask], **more: Any) -> Any:
    values = Case(PARITY).values
    return kind(**{k: v for k, v in values.items() if k not in ("_target_", "name")}, **more)


FAULTS: list[tuple[Any, Callable[[Any], None]]] = [
    (Leaky, promises.check_last_segment),
    (Hinting, promises.check_last_segment),
    (Wrong, lambda task: promises.check_oracle(task, Case(PARITY).solve())),
    (Skewed, promises.check_chance),
    (OneStream, promises.check_disjoint),
    (OneStream, lambda task: promises.check_streams(task, parity(OneStream))),
    (Round, promises.check_never_repeats),
    (Remembering, promises.check_own_words),
    (Remembering, lambda task: promises.check_streams(task, parity(Remembering))),
    (Elsewhere, promises.check_shapes),
]


@pytest.mark.parametrize(("kind", "check"), FAULTS, ids=lambda part: getattr(part, "__name__", ""))
def test_a_fault_is_found(kind: type[SyntheticTask], check: Callable[[Any], None]) -> None:
    with pytest.raises(AssertionError):
        check(parity(kind))


def test_a_lost_argument_is_found() -> None:
    with pytest.raises(AssertionError):
        promises.check_options(parity(Forgetful, flipped=True))
