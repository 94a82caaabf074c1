"""`memlab.evolve` on a pretrained model that no run has trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memlab.config.composing import compose_job, composing
from memlab.errors import ConfigError
from memlab.evaluation.accuracy import free_running
from memlab.evaluation.trained import fresh
from memlab.evolve import separate
from memlab.models.decoder import Decoder
from memlab.training import evolving
from memlab.training.evolve_settings import EvolveConfig, check_evolve
from memlab.training.population import Reader, Unit
from tests.pretrained import tiny

TASK = ["task=copy", "task.length=4", "task.symbols=5", "task.num_segments=3", "task.test_size=12"]
NETWORK = ["policy.n_fft=4", "policy.hop=2", "policy.ages=2", "policy.hidden=3"]
SHORT = [
    "generations=1",
    "population=4",
    "prompts=4",
    "dev_prompts=4",
    "test_prompts=6",
    "tracking=off",
    "threads=1",
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    tiny.save("llama", folder)
    return folder


def asked(words: list[str]) -> EvolveConfig:
    """As the command would."""
    own, untrained = separate(words)
    described = untrained.config()
    with composing():
        return check_evolve(compose_job("evolve", own), described)


def test_a_policy_evolves_on_it(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The full cache's score is that of the model with full attention."""
    monkeypatch.chdir(tmp_path)  # the model's own directory is in runs/
    words = [
        "backbone=pretrained",
        f"backbone.path={llama}",
        "backbone.dtype=float64",
        *TASK,
        *NETWORK,
        *SHORT,
    ]
    config = asked([*words, f"run_dir={tmp_path / 'run'}"])
    result = evolving.run(config, words)
    assert result["status"] == "finished" and result["run"] is None and result["parameters"] == 100
    assert "backbone=pretrained" in result["command"] and (tmp_path / "run" / "policy.pt").exists()
    reader = Reader(config)
    read = reader.read(Unit(0, "test", 0, 0, 6, None, np.stack([np.zeros(3), np.ones(3)])))
    batch: Any = reader.tasks[0].batch("test", 0, 6)
    assert isinstance(reader.model, Decoder)
    assert config.untrained is not None
    model = fresh(config.untrained, torch.device("cpu")).model
    assert isinstance(model, Decoder)
    tokens_BT, truth = torch.from_numpy(batch.tokens_BT), batch.targets_BT[:, batch.answer_BT[0]]
    predicted = free_running(model, tokens_BT, batch.answer_BT[0].tolist(), batch.segment_lengths).numpy()
    np.testing.assert_allclose(read.score_Pb[0], (predicted == truth).mean(1))
    assert result["metrics"]["test/full_accuracy"] == pytest.approx(read.score_Pb.mean())


def test_it_needs_a_task(llama: Path) -> None:
    with pytest.raises(ConfigError, match="task is missing"):
        asked(["backbone=pretrained", f"backbone.path={llama}"])
