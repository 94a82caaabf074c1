"""Several processes train as one does, to the rounding of their sums,
and a run may go on in another number and manner of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from memlab.training import checkpoints
from tests.training import together

REPOSITORY = Path(__file__).parents[2]
# the first test waits for both processes; they are started by one of pytest's workers
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group(__name__)]


def write_corpus(directory: Path) -> Path:
    """Documents of very different lengths: in most steps one process has more tokens that count than the
    other.
    """
    draw = random.Random(4)
    for split, sizes in (
        ("train", [2, 3, 60, 5, 2, 90, 4, 7, 30, 1, 2, 3]),
        ("validation", [3, 40, 9]),
        ("test", [12]),
    ):
        (directory / split).mkdir(parents=True)
        for number, size in enumerate(sizes):
            text = " ".join(draw.choice(["memory", "reads", "what", "was", "written"]) for _ in range(size))
            (directory / split / f"{number:02}.txt").write_text(text)
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes do together, in `together.double`."""
    return started(tmp_path_factory, "double")


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for `together.single`."""
    return started(tmp_path_factory, "single")


def started(factory: pytest.TempPathFactory, mode: str) -> Path:
    directory = factory.mktemp(mode)
    write_corpus(directory / "corpus")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.together", directory, mode],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr
    (directory / "told").write_text(done.stderr)
    return directory


def alone(pair: Path, name: str) -> Path:
    """The same training in one process."""
    place = pair / "one process" / name
    if not place.exists():
        together.train(together.config(together.trainings(pair / "corpus")[name], place, "cpu"))
    return place


def cases(both: tuple[list[Any], list[Any]]) -> list[Any]:
    """For `place`: what is trained, and by default or in the slow tests."""
    return [
        *((case, "pair") for case in both[0]),
        *(pytest.param((case, "single"), marks=pytest.mark.slow) for case in both[1]),
    ]


@pytest.fixture
def place(request: pytest.FixtureRequest) -> tuple[Any, Path]:
    """A case, and where it was trained."""
    case, fixture = request.param
    return case, request.getfixturevalue(fixture)


@pytest.mark.parametrize("place", cases(together.DDP), indirect=True)
def test_two_processes_train_as_one(place: tuple[str, Path]) -> None:
    """Every logged loss, gate and accuracy, validation, and the test; in double precision,
    so that only a mistake makes a difference.
    """
    name, directory = place
    compare(alone(directory, name), directory / "ddp" / name)


@pytest.mark.parametrize("name", together.trainings(Path()))
def test_shared_weights_train_as_one(name: str, pair: Path) -> None:
    """The same for trainer=fsdp, of every model there is."""
    compare(alone(pair, name), pair / "fsdp" / name)


def test_weights_and_optimizer_are_shared_out(pair: Path) -> None:
    """Each of two processes holds about half of them; small tensors do not divide evenly."""
    first, second = json.loads((pair / "held.json").read_text())
    assert 0.4 < second[0] <= first[1] < 0.6, (first, second)


@pytest.mark.parametrize("how", ["ddp in 2 parts", "fsdp in 4 parts"])
@pytest.mark.parametrize("place", cases(together.PARTS), indirect=True)
def test_a_step_in_parts_in_two_processes(how: str, place: tuple[str, Path]) -> None:
    name, directory = place
    compare(alone(directory, name), directory / how / name)


@pytest.mark.parametrize("place", cases(together.RECOMPUTED), indirect=True)
def test_recomputed_under_fsdp(place: tuple[tuple[str, str], Path]) -> None:
    """Blocks are gathered once more, for activations that are made again."""
    (name, again), directory = place
    compare(alone(directory, name), directory / f"fsdp, {again}s again" / name)


@pytest.mark.parametrize("place", cases(together.MOVED), indirect=True)
def test_a_run_moves_between_one_process_ddp_and_fsdp(place: tuple[str, Path]) -> None:
    """From each to each: weights, optimizer, places in the text and what the rows carry.

    The losses are those of an uninterrupted run.
    """
    name, directory = place
    compare(alone(directory, name), directory / "moved" / name)
    result = json.loads((directory / "moved" / name / "result.json").read_text())
    assert result["resumed_at"] == together.STOPS and result["processes"] == 1
    told = (directory / "told").read_text()
    assert (
        "the checkpoint is of 2 processes, now there is 1" in told
        and "the checkpoint is of 1 process, now there are 2" in told
    )


def test_fsdp_goes_on_as_if_it_had_not_been_stopped(pair: Path) -> None:
    """Bit for bit, dropout too."""
    whole, resumed = (together.losses(pair / "dropout" / name) for name in ("whole", "resumed"))
    assert whole == resumed
    assert json.loads((pair / "dropout" / "resumed" / "result.json").read_text())["resumed_at"] == [8]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_not_a_number_in_one_process_stops_all(strategy: str, pair: Path) -> None:
    told = (pair / "diverged" / strategy / "told").read_text()
    assert told.startswith("step 10: the loss is ") and "the largest gradient nan, of " in told, told
    assert "last.ckpt" in told and not (pair / "diverged" / strategy / "result.json").exists()


def test_the_best_checkpoint_holds_whole_tensors(pair: Path) -> None:
    """Of plain kinds, as one process writes them: `memlab.evaluate` and a model of one's own read them."""
    ours, theirs = (
        checkpoints.read(place / "rmt" / "checkpoints" / "best.ckpt")
        for place in (pair / "fsdp", alone(pair, "rmt").parent)
    )
    for mine, other in (
        (ours["state_dict"], theirs["state_dict"]),
        *zip(states(ours), states(theirs), strict=True),
    ):
        assert mine.keys() == other.keys()
        for name in mine:
            assert type(mine[name]) is torch.Tensor and mine[name].dtype == other[name].dtype
            torch.testing.assert_close(mine[name], other[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["rmt", "text rmt"])
def test_a_checkpoint_holds_what_all_processes_counted_and_carry(name: str, pair: Path) -> None:
    """Sums of the metrics, the place in the data, and the state of every row: of two processes as of one."""
    ours, theirs = (
        checkpoints.read(place / name / "checkpoints" / "last.ckpt")["memlab"]
        for place in (pair / "fsdp", alone(pair, name).parent)
    )
    assert len(ours["random"]) == 2 and len(theirs["random"]) == 1
    for part in ("objective", "evaluator", "stream"):
        mine, other = (pytree.tree_flatten(saved[part]) for saved in (ours, theirs))
        assert mine[1] == other[1]
        for one, two in zip(mine[0], other[0], strict=True):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)
            else:
                assert one == two
    counted = "loss.units" if name == "text rmt" else "accuracy.tp"
    assert int(ours["evaluator"][counted]) > 0


def states(checkpoint: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(state) for _, state in sorted(checkpoint["optimizer_states"][0]["state"].items())]


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize(
    "name", ["text rmt", pytest.param("text transformer_xl", marks=pytest.mark.slow), "infini_delta"]
)
def test_a_step_in_parts(name: str, parts: int, pair: Path) -> None:
    """Losses are weighed by what counts in the whole step, and each row carries its own state."""
    place = pair / f"one in {parts} parts" / name
    together.train(together.config(together.trainings(pair / "corpus")[name], place, "cpu", accumulate=parts))
    compare(alone(pair, name), place)


@pytest.mark.slow
@pytest.mark.parametrize("name", together.ISSUE)
def test_single_precision(name: str, single: Path) -> None:
    """Two processes with 16 rows each train as one with 32, to 1e-5."""
    place = single / "one" / name
    words = [*together.trainings(single / "corpus")[name], *together.IN_SINGLE]
    together.train(together.config(words, place, "cpu"))
    for strategy in ("ddp", "fsdp"):
        one, two = (losses_of(place) for place in (place, single / "32-true" / strategy / name))
        assert len(one) == 20 and two == pytest.approx(one, abs=1e-5), strategy


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rmt", "infini_delta"])
def test_half_precision(name: str, single: Path) -> None:
    """ddp and fsdp compute in the same types: gradients are added up in other orders, and no more."""
    ddp, fsdp = (losses_of(single / "bf16-mixed" / strategy / name) for strategy in ("ddp", "fsdp"))
    assert fsdp == pytest.approx(ddp, abs=2e-2) and fsdp != losses_of(single / "32-true" / "fsdp" / name)


def losses_of(place: Path) -> list[float]:
    return [line["train/loss"] for line in together.losses(place) if "train/loss" in line]


def compare(one_dir: Path, two_dir: Path) -> float:
    """The largest difference of a training loss; all that was logged has to be nearly equal."""
    one, two = together.losses(one_dir), together.losses(two_dir)
    assert len([line for line in one if "train/loss" in line]) == 12 and len(one) == len(two)
    difference = 0.0
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            # accuracies, and what Lightning logs of an evaluation, pass through single precision
            close = pytest.approx(value, rel=1e-10 if key == "train/loss" else 1e-6, abs=1e-12)
            assert theirs[key] == close, (key, mine.get("step", "test"))
            difference = max(difference, abs(theirs[key] - value) * (key == "train/loss"))
    return difference
