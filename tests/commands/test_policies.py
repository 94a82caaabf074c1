"""`policy=NAME` on command lines: finished runs read through a bounded cache, and runs trained under it."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import memlab
from memlab.config import cli
from memlab.config.checks import check
from memlab.errors import UserError
from memlab.evaluation.settings import check_evaluate
from memlab.evaluation.trained import load
from memlab.reports.evaluation.command import evaluate
from memlab.tracking import finished_runs
from memlab.tracking.stored_runs import from_directory
from memlab.training.run import train
from tests.commands.test_evaluate import SMALL, asked, configuration

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

RUN = [*SMALL, "model.heads=4", "trainer.max_steps=2", "tracking=off", "curriculum=off"]
LENGTHS = "lengths=[3,6]"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with full attention."""
    config = configuration(tmp_path_factory.mktemp("whole"), *RUN, "model=transformer", "model.context=full")
    train(config)
    return Path(config.run_dir)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was trained under a policy."""
    words = ["model=cached", "policy=streaming", "policy.budget=6", "policy.sinks=2"]
    config = configuration(tmp_path_factory.mktemp("bounded"), *RUN, *words)
    assert config.model["policy"] == {
        "name": "streaming",
        "budget": 6,
        "sinks": 2,
        "positions": "document",
        "every": None,
    }
    train(config)
    return Path(config.run_dir)


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation.json*", ".lock"))
    return tmp_path / "run"


def figures(entry: dict[str, Any]) -> list[Any]:
    return [entry[key] for key in ("accuracy", "exact_match", "accuracy_teacher_forced", "loss")]


def test_a_finished_run_is_read_with_policies_which_are_recorded_apart(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    as_trained = evaluate(asked(run, LENGTHS))
    own = as_trained["lengths"]
    drawn = (run / "figures" / "accuracy_by_segments.png").read_bytes()
    capsys.readouterr()
    after = evaluate(asked(run, LENGTHS, "policy=h2o", "policy.budget=5"))
    said = capsys.readouterr().out
    assert "policy h2o_5" in said and "FLOPs" not in said
    assert after["cost"] == as_trained["cost"]
    assert (run / "figures" / "accuracy_by_segments.png").read_bytes() == drawn
    assert (run / "figures" / "h2o_5" / "accuracy_by_segments.png").is_file()
    roomy = evaluate(asked(run, LENGTHS, "policy=h2o", "policy.budget=100"))["lengths"]
    policies = [None if e["policy"] is None else e["policy"]["budget"] for e in roomy]
    assert sorted(policies, key=str) == [100, 100, 5, 5, None, None]
    for entry in own:
        with_room = next(
            e
            for e in roomy
            if e["policy"] and e["policy"]["budget"] == 100 and e["segments"] == entry["segments"]
        )
        assert figures(with_room) == pytest.approx(figures(entry), abs=1e-6)
        small = next(
            e
            for e in roomy
            if e["policy"] and e["policy"]["budget"] == 5 and e["segments"] == entry["segments"]
        )
        assert small["loss"] != pytest.approx(entry["loss"], abs=1e-6)
        assert (
            small["memory"]["state_bytes"]
            < entry["memory"]["state_bytes"]
            < with_room["memory"]["state_bytes"]
        )
        assert with_room["memory"]["used_bytes"] < with_room["memory"]["state_bytes"]
    again = evaluate(asked(run, LENGTHS, "policy=h2o", "policy.budget=5"))["lengths"]
    assert again == roomy  # nothing was computed again
    compared = from_directory(run)
    assert {n: e["accuracy"] for n, e in compared.lengths.items()} == {
        e["segments"]: e["accuracy"] for e in own
    }


def test_a_run_trained_under_a_policy_is_opened_with_it_and_with_others(bounded: Path) -> None:
    words = ["policy=streaming", "policy.budget=6", "policy.sinks=2"]
    evaluate(asked(bounded, "lengths=[3]"))
    own, same = evaluate(asked(bounded, "lengths=[3]", *words))["lengths"]
    assert own["policy"] is None and same["policy"]["name"] == "streaming" and figures(same) == figures(own)
    opened = memlab.load(bounded, device="cpu", policy={"name": "full"})
    assert opened.model.keeps_everything and not memlab.load(bounded, device="cpu").model.keeps_everything
    inside = evaluate(asked(bounded, "inside=4", "policy=tova", "policy.budget=6", "policy.every=1"))[
        "inside"
    ][0]
    shares = torch.tensor(inside["memory_share"]["remembered"]["values"])
    assert (shares >= 0).all() and (shares <= 1).all() and (shares[1:] > 0).all()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["policy=h2"], "no policy is named 'h2'. Did you mean 'h2o'? There are: full, h2o, l2"),
        (["policy=h2o", "policy.budget=0"], "policy.budget=0: input should be greater than or equal to 1"),
        (["policy=h2o", "policy.window=3"], "unknown key 'policy.window'"),
        (["policy.budget=3"], "policy.budget=3: no policy is chosen; add policy=NAME. There are: full"),
    ],
)
def test_mistakes_of_evaluate(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memlab.evaluate", "run=nowhere", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("evaluate", check_evaluate, lambda config: 0)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model=rmt", "policy=h2o"], "policy=h2o: none of the layers has a bounded cache"),
        (
            ["model=cached", "policy=h2o", "policy.recent=1.5"],
            r"policy\.recent=1\.5: input should be a valid int",
        ),
    ],
)
def test_mistakes_of_train(words: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        configuration(tmp_path, *words)


def test_a_policy_needs_layers_with_full_attention(whole: Path, tmp_path: Path) -> None:
    found = finished_runs.find(str(whole), "")
    config = configuration(tmp_path, *RUN, "model=infini")
    values = {**config.model, "name": "changed"}
    from memlab.models.choices import bounded as through

    with pytest.raises(UserError, match=r"policy=tova reads layers with full attention.*layer_memory=infini"):
        through(values, {"name": "tova"})
    with pytest.raises(UserError, match=r"policy\.budget=3 has no room"):
        load(found, torch.device("cpu"), policy={"name": "streaming", "budget": 3})
    mixed = through({**values, "layer_memory": ["full", "infini"]}, {"name": "tova"})
    assert mixed["layer_memory"] == ["cached", "infini"] and mixed["policy"] == {"name": "tova"}
    with pytest.raises(UserError, match=r"needs a policy, policy=NAME; there are: full, h2o"):
        check_model_of({**config.model_dump(), "model": {**config.model, "layer_memory": "cached"}})


def check_model_of(plain: dict[str, Any]) -> None:
    from omegaconf import OmegaConf

    check(OmegaConf.create(plain))
