"""`memlab.bench suite=overhead` measures both sides and writes what it prints."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from memlab.bench import check_bench
from memlab.benchmarks import overhead, state_sizes
from memlab.config.compose_model import model_names
from memlab.config.paths import config_dir
from tests.processes import Processes

SMALL = ["model.width=16", "model.layers=1", "task.length=8", "task.batch_size=4", "trainer.threads=1"]
# In the place of Python where trainings are started: leaves what each leaves when it begins.
STAND_IN = """#!/bin/sh
echo "$@" >> {place}/asked
for word in "$@"; do case $word in run_dir=*) run="${{word#run_dir=}}"; esac; done
[ -z "$run" ] || {{ mkdir -p "$run"; echo '{{"step": 1, "train/loss": 2.5}}' > "$run/metrics.jsonl"; }}
"""


def check_overhead(place: Path, said: str) -> None:
    """What the suite writes and prints, of two repeats."""
    result = json.loads((place / "overhead.json").read_text())
    train, bare = result["train_seconds_per_step"], result["bare_seconds_per_step"]
    assert len(train) == len(bare) == 2 and all(t > 0 for t in train + bare)
    ratios = [t / b for t, b in zip(train, bare, strict=True)]
    assert result["ratio"] == {"median": sum(ratios) / 2, "min": min(ratios), "max": max(ratios)}
    assert all(
        len(result["start"][key]) == 3 and min(result["start"][key]) > 0 for key in ("first_step", "help")
    )
    assert result["versions"]["torch"] and result["cores"]
    assert f"{min(ratios):.3f}" in said and "overhead.json" in said
    assert {p.name for p in place.parent.iterdir()} == {"here"}, "the stores it measures with are gone"


def test_overhead_reports_pairs_and_their_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, and with a stand-in for the trainings whose start is measured."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "cwd").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text(STAND_IN.format(place=tmp_path))
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.chdir(tmp_path / "cwd")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check_bench(compose("bench", ["repeats=2", "steps=20", "run_dir=here", *SMALL]))
    overhead.run(config)
    check_overhead(tmp_path / "cwd" / "here", capsys.readouterr().out)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked[1::2] == ["-m memlab.train --help"] * 3
    first = "-m memlab.train model=rmt task=reverse trainer.max_steps=1 trainer.log_every=1 run_dir="
    assert all(words.startswith(first) for words in asked[::2]) and len(set(asked[::2])) == 3


@pytest.mark.slow
def test_overhead_measures_the_start_of_the_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memlab.bench", "repeats=2", "steps=20", "run_dir=here", *SMALL],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    check_overhead(tmp_path / "here", done.stdout)


OWN = """
from memlab.memories.infini import Infini


class Mine(Infini):
    pass
"""
PRESET = """# @package _global_
defaults:
  - override /layer_memory: infini
  - override /tokens: none

model:
  name: mine
  layer_memory: [my_memory.Mine, attention]
  layers: 4
"""


def test_forms_reports_every_preset_and_says_where_there_is_no_parallel_form(
    tmp_path: Path, processes: Processes
) -> None:
    """One's own too, whose layers are rounded up to what its pattern needs."""
    (tmp_path / "my_memory.py").write_text(OWN)
    (tmp_path / "mine" / "model").mkdir(parents=True)
    (tmp_path / "mine" / "model" / "mine.yaml").write_text(PRESET)
    sizes = {"segments": 3, "segment_length": 4, "batch_size": 2, "width": 16, "layers": 3, "heads": 2}
    words = [
        "--config-dir=mine",
        "suite=forms",
        "repeats=2",
        "run_dir=here",
        "trainer.threads=1",
        *(f"forms.{key}={value}" for key, value in sizes.items()),
    ]
    done = processes.run("bench", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "here" / "forms.json").read_text())
    assert set(result["models"]) == {*model_names(), "mine"}
    recurrent = {name for name, measured in result["models"].items() if measured["ratio"] is None}
    assert {"rmt", "rmt_xl", "rmt_encoder"} <= recurrent
    assert not {"infini", "infini_delta", "memorizing", "transformer_xl", "mine"} & recurrent
    page = (tmp_path / "here" / "PERFORMANCE.md").read_text()
    for name, measured in result["models"].items():
        slow, fast = measured["seconds"]["recurrent"], measured["seconds"]["parallel"]
        if name in recurrent:
            assert len(slow) == 2 and fast is None and f"{name} (it has no parallel form)" in done.stdout
            assert re.search(rf"\| {name} \| [\d.]+ \| - \| no parallel form \|", page)
            continue
        ratios = [a / b for a, b in zip(slow, fast, strict=True)]
        assert len(ratios) == 2
        assert measured["ratio"] == {"median": sum(ratios) / 2, "min": min(ratios), "max": max(ratios)}
        assert 0 < sum(measured["time"]["parallel"].values()) <= 1
        assert name in done.stdout


def test_a_model_that_is_not_there_is_a_mistake(tmp_path: Path, processes: Processes) -> None:
    done = processes.run("bench", "suite=forms", "forms.models=[infinite]", cwd=tmp_path)
    assert done.returncode == 2 and "forms.models: no model is named 'infinite'" in done.stderr, done.stderr
    assert "Did you mean 'infini'" in done.stderr and not list(tmp_path.iterdir())


def test_an_unknown_suite_is_a_mistake(tmp_path: Path, processes: Processes) -> None:
    done = processes.run("bench", "suite=speed", cwd=tmp_path)
    assert done.returncode == 2 and "suite='speed'" in done.stderr and "overhead" in done.stderr


def test_memory_reports_peaks_and_times(tmp_path: Path, processes: Processes) -> None:
    sizes = {
        "models": "[rmt,rmt_encoder,memorizing]",
        "segments": "[2,6]",
        "segment_length": 4,
        "batch_size": 2,
        "width": 16,
        "layers": 2,
        "heads": 2,
    }
    words = [
        "suite=memory",
        "repeats=2",
        "run_dir=here",
        "trainer.threads=1",
        *(f"memory.{key}={value}" for key, value in sizes.items()),
    ]
    done = processes.run("bench", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "here" / "memory.json").read_text())
    assert [measured["together"] for measured in result["models"].values()] == [1, 1, 4]
    for name, measured in result["models"].items():
        peaks = measured["peak_bytes"]
        assert all(len(peaks[way]) == 2 and peaks[way][1] > 0 for way in ("none", "block", "segment"))
        growth = {way: large - small for way, (small, large) in peaks.items()}
        assert growth["segment"] < growth["none"] and growth["block"] < growth["none"], name
        assert measured["memory_ratio"]["segment"] == peaks["segment"][1] / peaks["none"][1]
        slow, plain = measured["seconds"]["segment"], measured["seconds"]["none"]
        assert measured["time_ratio"]["segment"]["max"] == max(
            a / b for a, b in zip(slow, plain, strict=True)
        )
        assert name in (tmp_path / "here" / "memory.md").read_text()
    assert (tmp_path / "here" / "memory.png").stat().st_size > 10_000


def test_peak_bytes_are_those_that_were_allocated_at_a_time() -> None:
    """Known tensors: two of a megabyte at a time, one after another, and one that was there before."""
    import torch

    from memlab.benchmarks.memory import peak_bytes

    before = torch.ones(500_000)

    def work() -> None:
        for _ in range(3):
            one = torch.ones(250_000)
            two = one + 1
            del one, two
        before.add_(1)

    assert 2_000_000 <= peak_bytes(work, torch.device("cpu")) < 2_010_000


def test_state_sizes_print_the_paper_s_table_and_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check_bench(compose("bench", ["suite=state_sizes", f"run_dir={tmp_path}"]))
    result = state_sizes.run(config)
    assert json.loads((tmp_path / "state_sizes.json").read_text()) == result
    models = result["models"]
    counts = {name: (m["paper"], m["carried"]) for name, m in models.items()}
    assert counts["infini"] == counts["infini_delta"] == (1_585_152, 1_585_152)
    assert counts["memorizing"] == (183_451_648, 183_451_648)
    assert counts["transformer_xl"] == (50_331_648, 25_165_824)
    assert counts["rmt"] == (2_457_600, 102_400)
    assert counts["compressive"] == (12 * 1024 * (2048 + 512),) * 2
    assert counts["armt"] == (12 * 192 * (1024 + 1) + 102_400,) * 2
    assert counts["gated_deltanet"] == (12 * (8 * 128 * 128 + 3 * 3 * 1024),) * 2
    assert counts["linear_attention"] == counts["infini"]  # a matrix and a vector for each head
    segment = 2 * 12 * 1024 * 2048  # its keys and values
    # what the segment will add to the memory is held beside it
    assert models["infini"]["held"] == 2 * 1_585_152 + segment
    assert models["rmt"]["held"] == 102_400 + 2_457_600 + segment
    full = 2 * 12 * 1024 * 65_536
    for m in models.values():
        # counters of tokens beside the numbers
        assert m["compression_carry"] == pytest.approx(full / m["carried"], rel=1e-5)
        assert m["compression_peak"] == pytest.approx(full / m["held"])
    assert result["memorizing_over_infini"]["paper"] == pytest.approx(115.7, abs=0.05)
    said = capsys.readouterr().out
    assert all(printed in said for printed in ("50M", "183M", "2.5M", "1.6M", "114 ×"))
