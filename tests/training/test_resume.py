"""A run that was stopped, anywhere and anyhow, goes on as if it had not been:
every loss and every result, bit for bit.
"""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest

from memlab.training import random_state
from memlab.training.module import TrainingModule
from tests.processes import Processes
from tests.training import resuming
from tests.training.resuming import (
    Killed,
    assert_same,
    config,
    kill,
    kill_and_resume,
    numbers,
    numbers_so_far,
    points,
    result,
    resumed_at,
    size,
    stopped,
    train,
)


def test_killed_anywhere(tmp_path: Path, whole: Path) -> None:
    """Killed at some points of all there are, half of the time once more while it goes on."""
    draw = random.Random(0)
    total = points(tmp_path)
    for number, at in enumerate(sorted(draw.sample(range(total), 10))):
        run = tmp_path / str(number)
        told = [kill_and_resume(run, at)]
        if number % 2:
            told.append(kill_and_resume(run, draw.randrange(total // 2)))
        train(config(run, "resume=auto"))
        assert_same(run, whole, f"killed at {at} of {total}, {told}")


@pytest.mark.slow
def test_killed_everywhere(tmp_path: Path, whole: Path) -> None:
    for at in range(points(tmp_path)):
        run = tmp_path / str(at)
        told = kill_and_resume(run, at)
        train(config(run, "resume=auto"))
        assert_same(run, whole, f"killed at {at}, {told}")


def test_kill_9_again_and_again(tmp_path: Path, whole: Path, processes: Processes) -> None:
    """Real kills, at random moments of one run. (Ten runs of the command itself:
    tests/commands/test_resume.py, marked slow.)
    """
    draw = random.Random(1)
    longer = "trainer.max_steps=60"
    run, log = tmp_path / "run", tmp_path / "log"
    train(config(tmp_path / "whole", longer))
    kills, killed_at = 0, []
    line = [*resuming.words(run, longer), "resume=auto"]
    while kills < 5:
        before = size(run / "metrics.jsonl")
        process = processes.start("train", *line, cwd=tmp_path, log=log)
        # from some way into this process's share of the run on, at any moment
        resuming.wait_for(
            lambda before=before: (
                size(run / "metrics.jsonl") not in (0, before) or (run / "result.json").exists()
            )
        )
        time.sleep(draw.uniform(0, 0.06))
        os.kill(process.pid, 9)
        assert process.wait() == -9, log.read_text()
        kills += 1
        killed_at.append(len(numbers_so_far(run)))
        assert not (run / "result.json").exists(), "too slow to be killed"
    assert processes.start("train", *line, cwd=tmp_path, log=log).wait() == 0, log.read_text()
    assert_same(run, tmp_path / "whole", f"killed with so many lines logged: {killed_at}")
    assert len(resumed_at(run)) == 5


def test_the_comparison_can_fail(tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the generators' states, dropout draws other masks, and it is seen."""
    stopped(tmp_path / "run")
    monkeypatch.setattr(random_state, "restore", lambda states, device: None)
    train(config(tmp_path / "run", "resume=auto"))
    assert numbers(tmp_path / "run") != numbers(whole)


def test_stopped_early_stays_stopped(tmp_path: Path) -> None:
    """Killed in the test behind a training that stopped before its last step: it does not train on."""
    early = "trainer.stop_at_accuracy=0.0"
    train(config(tmp_path / "whole", early))
    assert result(tmp_path / "whole")["steps"] == 12, "the third stage is the last, and was solved at once"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(TrainingModule, "test_step", kill)
        with pytest.raises(Killed):
            train(config(tmp_path / "run", early))
    train(config(tmp_path / "run", early, "resume=auto"))
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert resumed_at(tmp_path / "run") == [12]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    draw = random.Random(2)
    for split, documents in (("train", 5), ("validation", 2), ("test", 2)):
        (tmp_path / "corpus" / split).mkdir(parents=True)
        for number in range(documents):
            text = " ".join(
                draw.choice(["memory", "reads", "what", "was", "written"])
                for _ in range(draw.randrange(20, 60))
            )
            (tmp_path / "corpus" / split / f"{number}.txt").write_text(text)
    return tmp_path / "corpus"


def text_words(corpus: Path) -> list[str]:
    left_out = {"task", "curriculum"}
    small = [w for w in resuming.SMALL if w.partition(".")[0].partition("=")[0] not in left_out]
    return [
        *small,
        "task=text",
        f"task.data_dir={corpus}",
        "task.segment_length=8",
        "task.num_segments=2",
        "task.batch_size=2",
    ]


@pytest.mark.parametrize("model", ["rmt", "transformer_xl", "memorizing"])
def test_text_goes_on_in_the_middle_of_documents(
    model: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """State of every row, place in every document, order of the files."""
    own = {
        "rmt": [],
        "transformer_xl": ["model.mem_len=8"],
        "memorizing": ["model.mem_len=8", "model.memory_size=32"],
    }[model]
    words = [w for w in text_words(corpus) if model == "rmt" or not w.startswith("model.memory_tokens")]
    words = [w.replace("layers=1", "layers=2") for w in words] + [f"model={model}", *own]
    monkeypatch.setattr(resuming, "SMALL", words)
    total = points(tmp_path)
    draw = random.Random(3)
    for at in draw.sample(range(20, total - 20), 2):
        run = tmp_path / str(at)
        told = kill_and_resume(run, at)
        train(config(run, "resume=auto"))
        assert_same(run, tmp_path / "counted", f"killed at {at} of {total}, {told}")
    step, losses = (
        numbers(run)[0]["step"],
        [line["train/loss"] for line in numbers(run) if "train/loss" in line],
    )
    assert step == 1 and len(set(losses)) == 14


MIXED = ["curriculum=mixed", "trainer.recompute=segment"]


def test_mixed_sizes_go_on_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same sizes at the same steps, with the same masks of dropout though segments are recomputed."""
    total = points(tmp_path, *MIXED)
    lines = [line for line in numbers(tmp_path / "counted") if "train/segments" in line]
    drawn, stage = [line["train/segments"] for line in lines], [line["curriculum/segments"] for line in lines]
    assert all(1 <= one <= most for one, most in zip(drawn, stage, strict=True)) and any(
        map(float.__lt__, drawn, map(float, stage))
    )
    for at in random.Random(4).sample(range(total), 3):
        run = tmp_path / str(at)
        told = kill_and_resume(run, at, *MIXED)
        train(config(run, "resume=auto", *MIXED))
        assert_same(run, tmp_path / "counted", f"killed at {at} of {total}, {told}")


def test_text_that_grows_goes_on_where_it_was(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random numbers of segments a step, in the middle of documents."""
    growing = ["curriculum=mixed", "curriculum.stage_steps=4", "task.num_segments=3"]
    words = [w for w in text_words(corpus) if not w.startswith("task.num_segments")]
    monkeypatch.setattr(resuming, "SMALL", [*words, *growing])
    total = points(tmp_path)
    lines = [line for line in numbers(tmp_path / "counted") if "train/segments" in line]
    assert [line["curriculum/segments"] for line in lines] == [1] * 4 + [2] * 4 + [3] * 6
    assert len({line["train/segments"] for line in lines[8:]}) > 1
    for at in random.Random(5).sample(range(total), 2):
        run = tmp_path / str(at)
        told = kill_and_resume(run, at)
        train(config(run, "resume=auto"))
        assert_same(run, tmp_path / "counted", f"killed at {at} of {total}, {told}")


def test_a_moved_run_goes_on(tmp_path: Path, whole: Path) -> None:
    stopped(tmp_path / "before")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "before", tmp_path / "elsewhere" / "run")
    run = tmp_path / "elsewhere" / "run"
    stamp = "runs/copy/rmt/2026-01-01_00-00-00-000000"  # as if no run_dir had been given
    train(config(Path(stamp), f"resume={run}"))
    assert_same(run, whole)
    assert not Path(stamp).exists()
