"""A mistake on the command line: one clear message, status 2, at once, no traceback,
and nothing left behind.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from memlab.config import cli
from memlab.config.checks import check
from memlab.config.paths import config_dir
from tests.processes import Processes

MODELS = sorted(file.stem for file in Path(config_dir(), "model").glob("*.yaml"))
MISTAKES = {
    "model=infini model.memory=of": ["model.memory='of'", "'on', 'off' or 'shuffled'"],
    "model=infini model.memory=shuffled task.batch_size=1": ["model.memory=shuffled", "task.batch_size=1"],
    "task=associative_retrieval task.keys=3": ["task.keys=3", "4 to 26"],
    "model=rnt": ["rnt", "Did you mean 'rmt'", ", ".join(MODELS)],
    "modle=rmt": ["unknown key 'modle'", "Did you mean 'model'"],
    "model.memory_token=3": ["unknown key 'model.memory_token'", "Did you mean 'memory_tokens'", "width"],
    "model=infini model.context=full": ["unknown key 'model.context'", "gate_init"],
    "+model.extra=1": ["unknown key 'model.extra'"],
    "model.width=abc": ["model.width='abc'", "integer"],
    "model.width=64.5": ["model.width=64.5", "integer"],
    "model.layers=0": ["model.layers=0", "greater than or equal to 1"],
    "model.bptt_depth=-1": ["model.bptt_depth=-1", "greater than or equal to 0"],
    "model.bptt_depth=4": ["model.bptt_depth=4", "0..3 or null"],
    "~model.width": ["model.width is missing"],
    "model=rmt model=transformer": ["model is given twice"],
    "model=rmt,transformer": ["add --multirun"],
    "task=revrse": ["revrse", "Did you mean 'reverse'"],
    "task.num_segments=5": ["task.num_segments=5", "1, 2, 3, 4, 6, 8"],
    "task.segment_lengths=[20,20]": ["add up to 40", "48 tokens"],
    "task.segment_lengths=[20,28]": ["curriculum=off"],
    "task=associative_retrieval task.length=11": ["task.length=11", "at most 10"],
    "trainer.max_steps=-1": ["trainer.max_steps=-1", "greater than or equal to 1"],
    "trainer.precision=fp8": ["trainer.precision='fp8'", "32-true"],
    "optim.betas=[0.9]": ["optim.betas", "2 items"],
    "curriculum=off curriculum.threshold=0.5": ["unknown key 'curriculum.threshold'"],
    "curriculum.threshold=2": ["curriculum.threshold=2", "less than or equal to 1"],
    "seed=1.5": ["seed=1.5", "integer"],
    "tracking.uri=3": ["tracking.uri=3", "string"],
    "-m run_dir=same seed=0,1": ["run_dir=same", "several runs"],
    "-m model=rmt,rnt": ["rnt", "Did you mean 'rmt'"],
    "--config-name other": ["--config-name"],
    "nonsense": ["nonsense"],
    "task=text curriculum=grow": ["curriculum.stage_steps=null", "curriculum=off"],
    "task=text curriculum=grow curriculum.stage_steps=9 curriculum.threshold=0.5": [
        "curriculum.threshold=0.5",
        "null",
    ],
    "task=text curriculum=length curriculum.stage_steps=9": ["curriculum.by=length", "segments"],
    "curriculum.by=length curriculum.sizes=[12]": ["curriculum.sizes=[12]", "task.length=24"],
    "curriculum.sizes=[1,4]": ["curriculum.sizes=[1, 4]", "stages of its own"],
    "curriculum.by=tokens": ["curriculum.by='tokens'", "segment_length"],
    "curriculum=mixed curriculum.by=segments curriculum.sizes=[0,4]": [
        "curriculum.sizes",
        "greater than or equal to 1",
    ],
    "trainer.recompute_together=2": ["trainer.recompute_together=2", "trainer.recompute=none"],
    "trainer.recompute=layer": ["trainer.recompute='layer'", "segment"],
    "task=text trainer.stop_at_accuracy=0.9": ["trainer.stop_at_accuracy=0.9", "null"],
    "task=text model.bptt_depth=8": ["model.bptt_depth=8", "0..7 or null"],
    "task=text task.bpe_size=100": ["task.bpe_size=100", "at least 257"],
    "task=pg19 task.tokenizer=byte": ["task.tokenizer=byte", "bytes, bpe"],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_a_mistake_is_told_in_one_message(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["memlab.train", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.run("train", check, lambda config: pytest.fail("the job began"))
    assert ended.value.code == 2
    shown = capsys.readouterr()
    message = (shown.out + shown.err).strip().splitlines()
    assert len(message) == 1 and message[0].startswith("memlab.train: error: "), message
    for part in MISTAKES[words]:
        assert part in message[0]
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_an_encoder_is_not_asked_for_many_tokens(tmp_path: Path, processes: Processes) -> None:
    """This takes the model to be known, so it is told later than the others;
    still before anything is begun or written.
    """
    done = processes.run("train", "model=rmt_encoder", "task=reverse", "task.length=12", cwd=tmp_path)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    for part in ("model=rmt_encoder", "task=reverse", "12 tokens", "associative_retrieval"):
        assert part in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_ends_the_process_with_status_2_and_no_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memlab.train", "model=rnt"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("memlab.train: error: ") and len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ("model.width=60 model.heads=4", ["model.width=60", "model.heads=4"]),
        ("model=transformer model.bptt_depth=1", ["model.bptt_depth=1", "carries nothing", "null"]),
        ("model=transformer_xl model.bptt_depth=1", ["model.bptt_depth=1", "cuts the gradient", "null"]),
        ("trainer=gpu", ["trainer=gpu", "no GPU"]),
    ],
)
def test_mistakes_that_only_the_model_knows(
    words: str, parts: list[str], tmp_path: Path, processes: Processes
) -> None:
    """Combinations that need the model's class are found when it is built,
    still before anything is written.
    """
    import torch

    if words == "trainer=gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU, so asking for it is no mistake")
    done = processes.run("train", *words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert all(part in done.stderr for part in parts), done.stderr
    assert list(tmp_path.iterdir()) == []


def seconds(words: list[str], cwd: Path, times: int = 3) -> float:
    """The fastest of a few runs: this machine's speed varies, and the slow ones say nothing of the
    command.
    """
    best = float("inf")
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "memlab.train", *words], cwd=cwd, capture_output=True, check=False
        )
        best = min(best, time.perf_counter() - began)
    return best


def test_help_and_mistakes_are_quick(tmp_path: Path) -> None:
    """Neither imports torch, lightning or mlflow."""
    assert seconds(["--help"], tmp_path) < 2.0
    assert seconds(["model=rnt"], tmp_path) < 2.0


def test_a_task_may_say_how_it_is_trained_and_the_command_line_decides(tmp_path: Path) -> None:
    rates = {}
    for words in (
        "task=reverse",
        "task=associative_retrieval",
        "task=associative_retrieval optim.lr=5e-4 optim.schedule=cosine",
    ):
        command = [sys.executable, "-m", "memlab.train", *words.split(), "--cfg", "job"]
        shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        composed = OmegaConf.create(shown)
        rates[words] = (composed.optim.lr, composed.optim.schedule)
    assert list(rates.values()) == [(1e-3, "constant"), (2e-3, "constant"), (5e-4, "cosine")]


def test_help_names_groups_choices_and_keys(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memlab.train", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    for word in (f"model: {', '.join(MODELS)}", "task: ", "memory_tokens: 12", "--multirun", "--cfg job"):
        assert word in done.stdout
    assert list(tmp_path.iterdir()) == []
