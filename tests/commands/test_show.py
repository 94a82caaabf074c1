"""`memlab.show` prints samples: what is read, cut into segments, and which targets count."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from memlab.config.checks import check_show
from memlab.config.paths import config_dir
from memlab.reports.samples import print_samples
from tests.processes import Processes

TASKS = sorted(file.stem for file in Path(config_dir(), "task").glob("*.yaml"))


Show = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def show(processes: Processes, tmp_path: Path) -> Show:
    return partial(processes.run, "show", cwd=tmp_path)


def test_a_sample_is_printed_by_segments_with_its_answer(tmp_path: Path, show: Show) -> None:
    done = show(
        "task=reverse",
        "task.length=4",
        "task.num_segments=2",
        "task.symbols=9",
        "samples=2",
        "split=test",
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "reverse, test: 2 segments of [4, 4] tokens; 4 answer tokens; chance 0.111"
    blocks = done.stdout.split("sample ")[1:]
    assert len(blocks) == 2
    for block in blocks:
        rows = [line.split() for line in block.splitlines() if " reads " in line or " answers " in line]
        first, second, answers = rows
        source = first[3:]
        assert first[:3] == ["segment", "1", "reads"] and len(source) == 4, (
            "the first segment's targets do not count: no second line"
        )
        assert second[:3] == ["segment", "2", "reads"] and second[3] == ">"
        assert answers == ["answers", *reversed(source)] and second[4:] == answers[1:-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", TASKS)
def test_every_task_can_be_shown(task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"task={task}", "samples=1"]
    text = "data_dir:" in Path(config_dir(), "task", f"{task}.yaml").read_text()
    if text:
        for split in ("train", "validation", "test"):
            (tmp_path / f"{split}.txt").write_text(" = A title = \n\n" + "Once upon a time. " * 200)
        with (tmp_path / "enwik8").open("wb") as file:
            file.truncate(100_000_000)
        words.append(f"task.data_dir={tmp_path}")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check_show(compose("show", words))
    print_samples(config)
    out = capsys.readouterr().out
    assert out.startswith(f"{task}, train: ")
    assert ("a document begins" in out) if text else ("sample 0" in out and "answers" in out)


def test_long_segments_are_wrapped_and_lose_nothing(show: Show) -> None:
    done = show("task=copy", "task.length=60", "task.num_segments=1", "samples=1")
    shown = [
        word
        for line in done.stdout.splitlines()
        if "reads" in line
        for word in line.split("reads")[1].split()
    ]
    assert len(shown) == 180 and shown[:60] == shown[61:121]


@pytest.mark.parametrize("words", ["task.lenght=3", "samples=0", "split=valid", "optim.lr=1", "task=revers"])
def test_a_mistake_is_one_line(words: str, show: Show) -> None:
    done = show(words)
    assert (
        done.returncode == 2
        and len(done.stderr.splitlines()) == 1
        and done.stderr.startswith("memlab.show: error: ")
    )
