"""A memory trained beside a pretrained backbone: its checkpoints, and putting the two together again.

The backbone is a small run of memlab, which is loaded as any other weights are.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

import memlab
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.errors import UserError
from memlab.training import checkpoints
from tests.training.resuming import SMALL, assert_same, stopped, train

pytestmark = pytest.mark.xdist_group(__name__)
TASK = [word for word in SMALL if not word.startswith("model.")]
SIZES = ["model.width=16", "model.heads=2", "model.layers=1"]
OWN = {"tokens.initial_memory_MD", "backbone.blocks.0.memory.gate_H"}


@functools.cache
def composed(*words: str) -> Config:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check(compose("train", [*TASK, *words]))


def at(run_dir: Path, *words: str, resume: str = "never") -> Config:
    return composed(*words).model_copy(update={"run_dir": str(run_dir), "resume": resume})


def retrofit(base: Path, kind: str) -> list[str]:
    """RMT's memory tokens over Infini layers, around the blocks of a base."""
    choices = ["model=rmt", "backbone=pretrained", "layer_memory=infini", "model.memory_tokens=3"]
    return [*choices, f"model.path={base}", "model.gate_init=-3.0", f"trainer.train={kind}"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("base") / "run"
    train(at(run, "model=transformer", *SIZES))
    return run


@pytest.fixture(scope="module", params=["memory", "lora", "all"])
def run(request: pytest.FixtureRequest, base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp(request.param) / request.param
    train(at(run, *retrofit(base, request.param)))
    return run


def weights(run: Path, name: str = "best.ckpt") -> dict[str, Any]:
    saved = checkpoints.read(run / "checkpoints" / name)["state_dict"]
    return {name.removeprefix("model."): value for name, value in saved.items()}


def test_a_checkpoint_holds_what_was_trained_and_says_beside_what(run: Path, base: Path) -> None:
    held, kind = set(weights(run)), run.name
    of_base = {name for name in weights(base) if name not in OWN}
    if kind == "all":
        assert held == of_base | OWN
        return
    adapter = "backbone.blocks.0.memory.attention.qkv.parametrizations.weight.0"
    adapters = {f"{adapter}.A_CrD", f"{adapter}.B_Pr"}
    assert held == (OWN | adapters if kind == "lora" else OWN)
    model = checkpoints.read(run / "checkpoints" / "best.ckpt")["hyper_parameters"]["config"]["model"]
    assert model["path"] == str(base) and model["family"] == "memlab"
    assert model["identity"].startswith("sha256:")


def test_an_opened_run_is_both_together(run: Path, base: Path) -> None:
    found = dict(memlab.load(run, device="cpu").model.named_parameters())
    trained, before = weights(run), weights(base)
    assert found.keys() == before.keys() | OWN
    for name, value in found.items():
        if name in trained:
            assert torch.equal(value, trained[name])
        elif run.name == "memory" or "qkv.weight" not in name:
            assert torch.equal(value, before[name]), name
        else:
            assert not torch.equal(value, before[name])


@pytest.mark.parametrize("run", ["lora"], indirect=True)
def test_a_killed_run_continues_bit_for_bit(run: Path, base: Path, tmp_path: Path) -> None:
    words = retrofit(base, run.name)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("tests.training.resuming.config", lambda place, *_: at(place, *words))
        stopped(tmp_path / "run")
    train(at(tmp_path / "run", *words, resume="auto"))
    assert_same(tmp_path / "run", run)


partly_trained = pytest.mark.parametrize("run", ["memory", "lora"], indirect=True)


@pytest.fixture
def moved(base: Path) -> Any:
    """The base is out of its place during a test."""
    place = base.rename(base.with_name("elsewhere"))
    yield place
    shutil.rmtree(base, ignore_errors=True)
    place.rename(base)


@partly_trained
def test_without_its_backbone(run: Path, moved: Path) -> None:
    """A run names what it needs, and reads it from another place."""
    with pytest.raises(UserError, match=r"best.ckpt holds what was trained beside a pretrained .*sha256:"):
        memlab.load(run, device="cpu")
    model = memlab.load(run, device="cpu", backbone=moved).model
    assert torch.equal(model.backbone.embed.weight, weights(moved)["backbone.embed.weight"])


@pytest.mark.parametrize("run", ["all"], indirect=True)
def test_without_the_backbone_that_it_began_as(run: Path, moved: Path) -> None:
    """All weights are in the checkpoint of a run that trained them all."""
    found = dict(memlab.load(run, device="cpu").model.named_parameters())
    assert all(torch.equal(value, found[name]) for name, value in weights(run).items())


@partly_trained
def test_another_backbone_is_refused(run: Path, base: Path, moved: Path) -> None:
    train(at(base, "model=transformer", *SIZES, "seed=5"))
    with pytest.raises(UserError, match=r"other weights than .*: sha256:\w+, expected sha256:\w+"):
        memlab.load(run, device="cpu")
    now = composed.__wrapped__(*retrofit(base, run.name))
    with pytest.raises(UserError, match=r"another configuration: model.identity=sha256:\w+ \(now sha256:"):
        train(now.model_copy(update={"run_dir": str(run), "resume": "auto"}))


@partly_trained
def test_what_was_trained_beside_a_backbone_is_none(run: Path) -> None:
    with pytest.raises(UserError, match=r"has only what was trained beside a pretrained model"):
        composed(*retrofit(run, "memory"))


def test_weights_with_adapters_are_no_backbone(tmp_path: Path) -> None:
    """Of a model from scratch, whose checkpoint holds everything."""
    train(at(tmp_path / "run", "model=transformer", *SIZES, "trainer.train=lora", "trainer.max_steps=4"))
    with pytest.raises(UserError, match=r"has low-rank adapters beside its weights"):
        composed(*retrofit(tmp_path / "run", "memory"))
