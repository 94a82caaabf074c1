"""Every preset of `configs/experiment/` is a sweep that can be trained,
and the command line goes before it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from memlab.config import cli
from memlab.config.checks import check
from memlab.config.compose_model import model_values
from memlab.config.paths import config_dir
from memlab.config.sections import Config, MLflowTracking
from memlab.models.compose import compose

# Trainings of one memory beside a backbone: what is trained, and the family that the backbone may be of.
OF_ONE_MODEL = {
    "passkey_base": ("all", None),
    "passkey_infini": ("all", "llama"),
    "passkey_tuned": ("all", "llama"),
    "retrofit_infini": ("memory", "llama"),
    "retrofit_rmt_encoder": ("all", "bert"),
}
PRESETS = sorted(file.stem for file in Path(config_dir(), "experiment").glob("*.yaml"))


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Config]]:
    """The configurations of all jobs of a command line; none is started."""

    def of(*words: str) -> list[Config]:
        found: list[Config] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["memlab.train", *words])
        monkeypatch.setenv("MEMLAB_MULTIRUN", "")

        def keep(composed: object) -> Config:
            found.append(check(composed))  # type: ignore[arg-type]
            return found[-1]

        class Checked(BaseException):
            pass

        def stop(*_: object, **__: object) -> None:
            raise Checked

        for name in ("memlab.config.cli._multirun", "hydra.main"):
            monkeypatch.setattr(name, stop)  # comes after everything has been checked
        with pytest.raises(Checked):
            cli.run("train", keep, lambda config: 0)
        return found

    return of


def test_the_promised_presets_are_there() -> None:
    assert {"reverse", "copy", "associative", "pg19_small", "facts"} <= set(PRESETS)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(OF_ONE_MODEL)))
def test_a_preset_compares_models_over_seeds(preset: str, jobs: Callable[..., list[Config]]) -> None:
    found = jobs("--multirun", f"experiment={preset}", "seed=0")  # one seed: composing takes its time
    over = "task" if preset == "far" else "model"  # one memory on three tasks
    compared = {getattr(c, over)["name"] for c in found}
    assert len(compared) == len(found) >= (3 if preset == "far" else 4)
    for config in found:
        assert isinstance(config.tracking, MLflowTracking) and config.tracking.experiment == preset
    text = (Path(config_dir()) / "experiment" / f"{preset}.yaml").read_text()
    params = yaml.safe_load(text)["hydra"]["sweeper"]["params"]
    assert list(params) == ["seed", over], "everything is seen once before a second seed begins"
    assert len(params["seed"].split(",")) == 3 and set(params[over].split(",")) == compared
    assert f"{3 * len(found)} runs" in text and any(word in text for word in ("minute", "hour")), (
        "how long it takes is said"
    )
    assert (
        f"memlab.train --multirun experiment={preset}" in text
        and f"memlab.compare experiment={preset}" in text
    )


def base(folder: Path, family: str) -> Path:
    """A checkpoint as of a small model from scratch."""
    values = model_values("transformer", [f"backbone={family}", "model.width=16", "model.heads=2"])
    weights = {f"model.{n}": value for n, value in compose(values, 300).state_dict().items()}
    file = folder / "base.ckpt"
    config = {"hyper_parameters": {"config": {"model": values}}, "memlab": {}, "state_dict": weights}
    torch.save(config, file)
    return file


@pytest.mark.parametrize("preset", OF_ONE_MODEL)
def test_a_preset_of_one_model(preset: str, jobs: Callable[..., list[Config]], tmp_path: Path) -> None:
    """Both seeds, with a backbone that the command line names and the keys that its family has."""
    trained, family = OF_ONE_MODEL[preset]
    words = [f"backbone.path={base(tmp_path, family)}", "task.tokenizer=bytes"] if family else []
    found = jobs("--multirun", f"experiment={preset}", *words)
    assert [config.seed for config in found] == [0, 1]
    for config in found:
        assert isinstance(config.tracking, MLflowTracking) and config.tracking.experiment == preset
        assert config.trainer.train == trained and config.model["backbone"] == (
            "pretrained" if family else "llama"
        )
        assert config.model["width"] == (16 if family else 256)
    text = (Path(config_dir()) / "experiment" / f"{preset}.yaml").read_text()
    assert "2 runs" in text and "hour" in text and f"experiment={preset}" in text


def test_settings_of_one_model_and_the_command_line(jobs: Callable[..., list[Config]]) -> None:
    found = jobs(
        "-m", "experiment=copy", "model=transformer_xl,rmt", "seed=5", "trainer.max_steps=7", "tracking=off"
    )
    assert [(c.model["name"], c.seed, c.model.get("mem_len"), c.trainer.max_steps) for c in found] == [
        ("transformer_xl", 5, 9, 7),
        ("rmt", 5, None, 7),
    ]
    (alone,) = jobs("-m", "experiment=copy", "model=transformer_xl", "seed=0", "model.mem_len=3")
    assert alone.model["mem_len"] == 3, "the command line goes before the preset"
    (single,) = jobs("experiment=copy", "model=memorizing")
    assert single.model["mem_len"] == 9 and single.task["length"] == 12 and single.seed == 0


OWN = {
    "experiment: {per_model: {rnt: {model.width: 8}}}": ["no model is named 'rnt'", "Did you mean 'rmt'"],
    "experiment: {per_model: {rmt: {model.mem_len: 8}}}": ["unknown key 'model.mem_len'"],
    "experiment: {nmae: x}": ["unknown key 'experiment.nmae'", "name and per_model"],
    "trainer: {max_step: 8}": ["unknown key 'trainer.max_step'"],
}


@pytest.mark.parametrize("content", OWN)
def test_mistakes_in_a_preset(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A preset of the user's own, beside the shipped ones."""
    own = tmp_path / "configs"
    (own / "experiment").mkdir(parents=True)
    (own / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{content}\n")
    monkeypatch.setattr(sys, "argv", ["memlab.train", "--config-dir", str(own), "experiment=mine"])
    with pytest.raises(SystemExit) as ended:
        cli.run("train", check, lambda config: pytest.fail("the job began"))
    assert ended.value.code == 2
    said = capsys.readouterr().err
    for part in OWN[content]:
        assert part in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("experiment=revers", "Did you mean 'reverse'"),
        ("-m experiment=copy,reverse", "each is a sweep of its own"),
    ],
)
def test_mistakes(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memlab.train", *words.split()])
    with pytest.raises(SystemExit) as ended:
        cli.run("train", check, lambda config: pytest.fail("the job began"))
    assert ended.value.code == 2 and said in capsys.readouterr().err
