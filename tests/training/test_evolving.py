"""An evolution from its configuration to its result, stopped and continued; and what is a mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from memlab.config.paths import config_dir
from memlab.errors import ConfigError, UserError
from memlab.files import read_lines
from memlab.layers.description import Description
from memlab.policies.namm import NAMM
from memlab.training import evolution, evolving
from memlab.training.evolve_settings import check_evolve
from memlab.training.population import Reader, Unit
from memlab.training.readers import Readers
from tests.training.evolving import asked, trained, without_seconds

pytestmark = pytest.mark.xdist_group(__name__)
DESCRIPTION = Description(layer=1, layers=2, width=8, heads=2, kv_heads=2, head_width=4, ffn_width=8)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture(scope="module")
def whole(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An evolution that nothing disturbed, in MLflow."""
    place = tmp_path_factory.mktemp("whole")
    store = [f"tracking.uri=sqlite:///{place}/mlflow.db", "tracking.experiment=evolved"]
    return place, evolving.run(asked(run, place / "run", "tracking=mlflow", *store), ["run=DIR"])


def of(place: Path) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
    """All figures but times, and the weights."""
    found = torch.load(place / "policy.pt", weights_only=True)
    return without_seconds(read_lines(place / "metrics.jsonl")), [
        found[name] for name in ("mean_F", "std_F", "parameters_n")
    ]


def assert_same(place: Path, expected: Path) -> None:
    (lines, tensors), (right_lines, right) = of(place), of(expected)
    assert lines == right_lines
    assert all(torch.equal(a, b) for a, b in zip(tensors, right, strict=True))


def test_a_run_like_any_other_whose_weights_a_policy_takes(
    whole: tuple[Path, dict[str, Any]], run: Path
) -> None:
    place, result = whole[0] / "run", whole[1]
    assert json.loads((place / "result.json").read_text()) == result
    assert result["status"] == "finished" and result["generations"] == 3 and result["parameters"] == 100
    wanted = {"accuracy", "full_accuracy", "fitness", "cache_share"}
    assert result["metrics"].keys() == {f"{split}/{name}" for split in ("dev", "test") for name in wanted}
    assert result["command"] == f"python -m memlab.evolve run=DIR resume={place}"
    assert result["memory"]["tokens"] == 11 and result["memory"]["state_bytes"] > 0
    lines = read_lines(place / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert [("dev/fitness" in line) for line in lines] == [True, True, True], "first, every second, last"
    policy = NAMM(DESCRIPTION, weights=str(place))
    assert policy.sizes.n_fft == 4 and policy.parameters_Pn.shape == (1, 100)
    assert float(policy.parameters_Pn.abs().sum()) > 1
    np.testing.assert_allclose(policy.mean_F, Reader(asked(run, place)).spectra(first_unit())[0], rtol=1e-5)


def first_unit() -> Unit:
    return Unit(0, "train", 1 << 32, 0, 5, None, np.stack([np.zeros(3), np.ones(3)]))


def test_the_curves_are_in_mlflow(whole: tuple[Path, dict[str, Any]]) -> None:
    client = MlflowClient(f"sqlite:///{whole[0]}/mlflow.db")
    found = client.get_run(whole[1]["mlflow_run_id"])
    assert found.info.status == "FINISHED"
    assert found.data.params["policy.n_fft"] == "4" and found.data.tags["memlab.policy"] == "namm"
    for name in ("evolve/best", "evolve/mean", "evolve/cache_share", "dev/fitness"):
        history = client.get_metric_history(found.info.run_id, name)
        assert [(m.step, m.value) for m in history] == [
            (line["step"], line[name]) for line in read_lines(whole[0] / "run" / "metrics.jsonl")
        ]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("moment", ["in a generation", "after its line", "before the result"])
def test_killed_and_continued_it_is_the_uninterrupted_one(
    run: Path,
    whole: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    def kill(*args: Any, **more: Any) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        if moment == "in a generation":
            tell, told = evolution.Sampler.tell, []

            def second(self: Any, *args: Any) -> None:
                told.append(1)
                tell(self, *args) if len(told) < 2 else kill()

            patch.setattr(evolution.Sampler, "tell", second)
        elif moment == "after its line":
            save, saved = evolving._Evolving._save, []

            def third(self: Any) -> None:
                saved.append(1)
                save(self) if len(saved) < 3 else kill()

            patch.setattr(evolving._Evolving, "_save", third)
        else:
            patch.setattr(evolving.RunDirectory, "write_result", kill)
        with pytest.raises(Killed):
            evolving.run(asked(run, tmp_path / "run"))
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(UserError, match="already holds a run"):
        evolving.run(asked(run, tmp_path / "run"))
    result = evolving.run(asked(run, tmp_path / "run", "resume=auto", "rows=64"))
    assert_same(tmp_path / "run", whole[0] / "run")
    assert result["resumed_at"] == [{"in a generation": 1, "after its line": 2}.get(moment, 3)]
    assert result["metrics"] == whole[1]["metrics"]


def test_it_begins_with_the_weights_of_an_earlier_evolution(
    run: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Of these sizes; with a tiny sigma, it ends near them."""
    words = [f"policy.weights={whole[0] / 'run'}", "sigma=1e-9", "generations=1", "test_prompts=null"]
    for network in ("n_fft", "hop", "ages", "hidden"):
        words.append(f"policy.{network}=null")
    result = evolving.run(asked(run, tmp_path / "run", *words))
    assert not any(name.startswith("test/") for name in result["metrics"])
    for found, expected in zip(of(tmp_path / "run")[1], of(whole[0] / "run")[1], strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


def test_a_new_evolution_does_not_continue_what_is_left_of_another(
    run: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Its configuration is gone, so nobody knows what the checkpoint is of."""
    shutil.copytree(whole[0] / "run" / "checkpoints", tmp_path / "run" / "checkpoints")
    evolving.run(asked(run, tmp_path / "run", "generations=1"))
    assert of(tmp_path / "run")[0] == of(whole[0] / "run")[0][:1]


def test_asked_to_end_it_saves_its_generation(
    run: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    with monkeypatch.context() as patch:
        ask = evolution.Sampler.ask

        def asking(self: Any) -> Any:
            if self.generation == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return ask(self)

        patch.setattr(evolution.Sampler, "ask", asking)
        with pytest.raises(SystemExit) as ended:
            evolving.run(asked(run, tmp_path / "run"), ["run=DIR"])
    assert ended.value.code == 128 + signal.SIGTERM
    assert (
        f"continue with: python -m memlab.evolve run=DIR resume={tmp_path / 'run'}" in capsys.readouterr().err
    )
    assert len(read_lines(tmp_path / "run" / "metrics.jsonl")) == 2
    evolving.run(asked(run, tmp_path / "run", "resume=auto"))
    assert_same(tmp_path / "run", whole[0] / "run")


def test_a_finished_evolution_is_not_evolved_again(
    run: Path, whole: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole[0] / "run" / "metrics.jsonl").read_bytes()
    assert evolving.run(asked(run, whole[0] / "run", "resume=auto")) == whole[1]
    assert "has finished already" in capsys.readouterr().err
    assert (whole[0] / "run" / "metrics.jsonl").read_bytes() == before


def test_another_configuration_does_not_continue_it(run: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"holds a run of another configuration: sigma=0\.5 \(now 0\.25\)"):
        evolving.run(asked(run, whole[0] / "run", "resume=auto", "sigma=0.25"))


@pytest.mark.slow
def test_several_processes_come_to_the_same(
    run: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    evolving.run(asked(run, tmp_path / "run", "workers=2"))
    assert_same(tmp_path / "run", whole[0] / "run")


@pytest.mark.slow
def test_a_worker_that_is_ended_is_one_message(run: Path, tmp_path: Path) -> None:
    with Readers(asked(run, tmp_path, "workers=2")) as readers:
        unit = first_unit()
        assert len(readers.read([unit, unit])) == 2
        assert readers._pool is not None
        for pid in list(readers._pool._processes):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(UserError, match="one of the workers=2 was ended"):
            readers.read([unit, unit])


def test_a_model_without_full_attention_is_one_message(tmp_path: Path) -> None:
    place = trained(
        tmp_path / "infini", ["model=infini", "model.width=16", "model.heads=2", "model.layers=1"]
    )
    with pytest.raises(ConfigError, match="full attention"):
        evolving.run(asked(place, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run=null"], "run is missing: give the model that is read"),
        (["policy=h2o"], "policy=h2o has no parameters that could evolve; use policy=namm"),
        (["policy.hidden=0"], r"policy\.hidden=0"),
        (["population=3"], "population=3"),
        (["generations=2", "stages=[{generations:2}]"], r"generations=2: each of the stages says its own"),
        (["stages=[{num_segments:2}]"], "stage 1 has generations=None; it needs a positive whole number"),
    ],
    ids=str,
)
def test_mistakes(words: list[str], message: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        run = [] if "run=null" in words else ["run=DIR"]
        composed = compose("evolve", [*run, *words])
    with pytest.raises(ConfigError, match=message):
        check_evolve(composed)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{generations:1,num_segment:2}", "stage 1 sets num_segment.*Did you mean 'num_segments'"),
        ("{generations:1,task:copies}", "no task is named 'copies'.*Did you mean 'copy'"),
        ("{generations:1,task:wikitext}", "task=wikitext has no answers"),
        ("{generations:1,num_segments:0}", r"task\.num_segments=0"),
    ],
    ids=str,
)
def test_mistakes_in_stages(run: Path, tmp_path: Path, stage: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evolving.run(asked(run, tmp_path / "run", f"stages=[{stage}]"))
    assert not (tmp_path / "run").exists()
