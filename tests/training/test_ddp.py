"""Several processes train as one does, to the rounding of their sums, and a run may go on in another number of them."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training import together

REPOSITORY = Path(__file__).parents[2]


def run(*words: str | Path, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, "-m", *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=280)


def write_corpus(directory: Path) -> Path:
    """Documents of very different lengths: in most steps one process has more tokens that count than the other."""
    draw = random.Random(4)
    for split, sizes in (("train", [2, 3, 60, 5, 2, 90, 4, 7, 30, 1, 2, 3]), ("validation", [3, 40, 9]), ("test", [12])):
        (directory / split).mkdir(parents=True)
        for number, size in enumerate(sizes):
            text = " ".join(draw.choice(["memory", "reads", "what", "was", "written"]) for _ in range(size))
            (directory / split / f"{number:02}.txt").write_text(text)
    return directory


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All of `together.trainings` in two processes, and those on text in one too."""
    directory = tmp_path_factory.mktemp("pair")
    write_corpus(directory / "corpus")
    for name in together.RESUMED:
        together.stop(together.config(together.trainings(directory / "corpus")[name], directory / "one to two" / name, "cpu"))
    done = run("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "tests.training.together", directory)
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.parametrize("name", together.trainings(Path()))
def test_two_processes_train_as_one(name: str, pair: Path) -> None:
    """Every logged loss, gate and accuracy, validation, and the test; in double precision, so that only a mistake makes a difference."""
    words = together.trainings(pair / "corpus")[name]
    together.train(together.config(words, pair / "one" / name, "cpu"))
    difference = compare(pair / "one" / name, pair / "ddp" / name)
    print(f"{name}: largest difference of a loss {difference:.1e}")


@pytest.mark.parametrize("name", together.RESUMED)
def test_a_run_goes_on_in_another_number_of_processes(name: str, pair: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Places in the text and what the rows carry are dealt out anew: the losses are those of an uninterrupted run."""
    words = together.trainings(pair / "corpus")[name]
    if not (pair / "one" / name).exists():
        together.train(together.config(words, pair / "one" / name, "cpu"))
    compare(pair / "one" / name, pair / "one to two" / name)
    capsys.readouterr()
    together.train(together.config(words, pair / "two to one" / name, "cpu").model_copy(update={"resume": "auto"}))
    assert "the checkpoint is of 2 processes, now there is 1" in capsys.readouterr().err
    compare(pair / "one" / name, pair / "two to one" / name)


def compare(one_dir: Path, two_dir: Path) -> float:
    """The largest difference of a training loss; all that was logged has to be nearly equal."""
    one, two = together.losses(one_dir), together.losses(two_dir)
    assert len([line for line in one if "train/loss" in line]) == 20 and len(one) == len(two)
    difference = 0.0
    for mine, theirs in zip(one, two, strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            # accuracies, and what Lightning logs of an evaluation, pass through single precision
            close = pytest.approx(value, rel=1e-10 if key == "train/loss" else 1e-6, abs=1e-12)
            assert theirs[key] == close, (key, mine.get("step", "test"))
            difference = max(difference, abs(theirs[key] - value) * (key == "train/loss"))
    return difference
