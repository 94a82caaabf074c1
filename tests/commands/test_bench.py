"""`memlab.bench suite=overhead` measures both sides and writes what it prints."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path


def test_overhead_reports_pairs_and_their_ratio(tmp_path: Path) -> None:
    small = ["model.width=16", "model.layers=1", "task.length=8", "task.batch_size=4", "trainer.threads=1"]
    words = ["repeats=2", "steps=20", "run_dir=here", *small]
    done = subprocess.run([sys.executable, "-m", "memlab.bench", *words], cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "here" / "overhead.json").read_text())
    train, bare = result["train_seconds_per_step"], result["bare_seconds_per_step"]
    assert len(train) == len(bare) == 2 and all(t > 0 for t in train + bare)
    ratios = [t / b for t, b in zip(train, bare, strict=True)]
    assert result["ratio"] == {"median": sum(ratios) / 2, "min": min(ratios), "max": max(ratios)}
    assert result["versions"]["torch"] and result["cores"]
    assert f"{min(ratios):.3f}" in done.stdout and "overhead.json" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"here"}, "the stores it measures with are gone"


def test_an_unknown_suite_is_a_mistake(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "memlab.bench", "suite=speed"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and "suite='speed'" in done.stderr and "overhead" in done.stderr
