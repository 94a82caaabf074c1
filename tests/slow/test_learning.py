"""The claims of docs/RESULTS.md, by the commands that made them. Minutes each: `pytest -m slow`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def result_of(directory: Path, *words: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "memlab.train", *words, "tracking=off", f"run_dir={directory / 'run'}"]
    subprocess.run(command, check=True, cwd=directory)
    result: dict[str, Any] = json.loads((directory / "run" / "result.json").read_text())
    return result


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("task", ["reverse", "copy", "associative_retrieval"])
def test_rmt_solves(task: str, seed: int, tmp_path: Path) -> None:
    """Free-running accuracy of at least 0.99 with the default settings, in less than five minutes of
    training on two cores.
    """
    result = result_of(tmp_path, "model=rmt", f"task={task}", f"seed={seed}")
    assert result["metrics"]["test/accuracy"] >= 0.99
    assert result["timing"]["train_seconds"] < 300


@pytest.mark.parametrize("model", ["transformer", "memory_transformer"])
@pytest.mark.parametrize("task", ["reverse", "copy"])
def test_controls_without_memory_stay_near_chance(task: str, model: str, tmp_path: Path) -> None:
    result = result_of(tmp_path, f"model={model}", f"task={task}", "curriculum=off", "trainer.max_steps=1000")
    assert result["metrics"]["test/accuracy"] < 0.2


def test_full_attention_is_the_ceiling(tmp_path: Path) -> None:
    result = result_of(tmp_path, "model=transformer", "model.context=full", "task=reverse")
    assert result["metrics"]["test/accuracy"] >= 0.99


def test_transformer_xl_falls_with_more_segments_and_rmt_does_not(tmp_path: Path) -> None:
    """The pattern of the RMT paper's figure 3, on 12 symbols to reverse; caches are as long as a segment."""
    accuracy = {}
    for model, options in (("rmt", []), ("transformer_xl", ["model.mem_len=6"])):
        place = tmp_path / model
        place.mkdir()
        words = [
            f"model={model}",
            "task=reverse",
            "task.length=12",
            "task.num_segments=4",
            "trainer.max_steps=1500",
            *options,
        ]
        accuracy[model] = result_of(place, *words, "curriculum.stage_steps=500")["metrics"]["test/accuracy"]
    assert accuracy["rmt"] >= 0.99
    assert accuracy["transformer_xl"] < 0.8
