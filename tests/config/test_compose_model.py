"""The values of a preset, composed without a command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from memlab.config.checks import check
from memlab.config.compose_model import model_names, model_values
from memlab.config.paths import config_dir
from memlab.errors import ConfigError


@pytest.mark.parametrize("name", model_names())
def test_the_values_are_those_of_a_training(name: str) -> None:
    words = ["model.width=32", "model.bptt_depth=1"]
    task = "task=associative_retrieval"  # one that an encoder can answer, too
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = compose("train", [f"model={name}", task, *words])
        inside = model_values(name, words)  # as within a running command
    assert inside == model_values(name, words) == check(composed).model
    chosen = {key: value for key, value in inside.items() if key != "policy"}  # a section of its own
    assert OmegaConf.to_container(composed.model) == chosen


def test_groups_and_one_s_own_presets(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.yaml").write_text("name: mine\nlayer_memory: infini\nupdate: delta\n")
    assert "mine" not in model_names() and "mine" in model_names(tmp_path)
    values = model_values("mine", ["tokens=rmt", "model.memory_tokens=2"], own=tmp_path)
    assert (values["name"], values["layer_memory"], values["update"]) == ("mine", "infini", "delta")
    assert (values["tokens"], values["memory_tokens"]) == ("rmt", 2)


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("rtm", [], "no model is named 'rtm'. Did you mean 'rmt'"),
        ("rmt", ["model.widht=3"], "model=rmt: .*model.widht"),
        ("rmt", ["model.width=wide"], "model.width='wide'"),
        ("rmt", ["+model.mem_len=3"], "unknown key 'model.mem_len'"),
    ],
)
def test_mistakes(name: str, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        model_values(name, words)


def test_no_torch_is_imported() -> None:
    code = "import sys; from memlab.config.compose_model import model_values; model_values('rmt'); "
    subprocess.run([sys.executable, "-c", code + "assert 'torch' not in sys.modules"], check=True)
