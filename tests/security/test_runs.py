"""Opening a stranger's run: its directory, a checkpoint alone, by way of MLflow. Nothing of it runs."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import memlab
from memlab.errors import UserError
from memlab.tracking import mlflow_client, stored_runs
from tests.mistakes.starting import Start
from tests.security.strangers import EVIL, OTHER, run, set_keys

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

REFUSED = "is not one of memlab's classes, and its module has not been imported"
REPLACED = "would be replaced when the file is opened, and is not allowed here"
POPEN = {"_target_": "subprocess.Popen", "name": "x", "args": ["touch", "it_ran"]}
RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "a class": ({"task": POPEN}, f"task._target_=subprocess.Popen {REFUSED}"),
    "a function": ({"task___target_": "os.system"}, f"task._target_=os.system {REFUSED}"),
    "no module": ({"task___target_": "Popen"}, "task._target_='Popen' is not a class in a module"),
    "a path": ({"task___target_": "../code/x.Task"}, "'../code/x.Task' is not a class in a module"),
    "a nested module": ({"task___target_": f"{EVIL}.Task"}, rf"allow it with trust=\[{EVIL}\]"),
    "a module": ({"task___target_": f"{OTHER}.Task"}, rf"allow it with trust=\[{OTHER}\]"),
    "a memory": ({"model__layer_memory": f"{EVIL}.Memory"}, f"model.layer_memory={EVIL}.Memory {REFUSED}"),
    "a list": ({"model__layer_memory": [f"{OTHER}.Memory"]}, f"model.layer_memory={OTHER}.Memory {REFUSED}"),
    "tokens": ({"model__tokens": f"{EVIL}.Tokens"}, f"model.tokens={EVIL}.Tokens {REFUSED}"),
    "a policy": (
        {"model__layer_memory": "cached", "model__policy": {"name": f"{EVIL}.Policy", "budget": 4}},
        f"policy.name={EVIL}.Policy {REFUSED}",
    ),
    "a path to tokens": ({"model__tokens": "../../../code/x.y"}, "is not a class in a module"),
    "a function of memlab": ({"task___target_": "memlab.files.write_whole"}, "has no class 'write_whole'"),
    "a class of memlab": ({"task___target_": "memlab.tasks.draws.Ints"}, "has no class 'Ints'"),
    "no task of memlab": (
        {"task": {"_target_": "memlab.tracking.jsonl.JsonlLogger", "name": "x", "path": "it_ran"}},
        r"JsonlLogger does not derive from memlab\.tasks\.base\.Task|annotated 'Path'",
    ),
    "the base of tasks": ({"task___target_": "memlab.tasks.base.Task"}, "no __init__|is abstract"),
    "no tokens": ({"model__tokens": "memlab.memories.full.Full"}, "unknown key"),
    "what is trusted": ({"trust": ["subprocess"]}, "trust is only read from the command line"),
    "the environment": ({"seed": "${oc.env:OF_STRANGERS_TEST}"}, f"seed=.* {REPLACED}"),
    "in a list": ({"optim__betas": ["${oc.env:OF_STRANGERS_TEST}", 0.9]}, REPLACED),
    "a new object": ({"task": "${oc.create:{x: 1}}"}, REPLACED),
    "the time": ({"run_dir": "runs/${now:%Y}"}, REPLACED),
    "another key": ({"seed": "${trainer.max_steps}"}, REPLACED),
    "a key": ({"task__${oc.env:OF_STRANGERS_TEST}": 1}, REPLACED),
    "the terminal": ({"model__name": "rmt\x1b]0;x\x07"}, r"model\.name=rmt\\x1b\]0;x\\x07 has a control"),
    "backwards": ({"task__name": "copy\u202e"}, r"task\.name=copy\\u202e has a control character"),
    "a place": ({"task__name": "../../elsewhere"}, r"task\.name=\.\./\.\./elsewhere: runs are in a dir"),
    "no mapping": ({"task": ["touch", "it_ran"]}, "task"),
    "no text": ({"task___target_": ["os.system"]}, "task._target_ is missing"),
}  # fmt: skip


def check(message: str, wanted: str, named: str) -> None:
    assert re.search(wanted, message), message
    assert named in message and message.isprintable() and "a secret" not in message


@pytest.mark.parametrize("name", RUNS)
def test_a_hostile_run(name: str, whole: Path, tmp_path: Path, canary: Path) -> None:
    changes, message = RUNS[name]
    directory = run(whole, tmp_path / "run", set_keys(**changes))
    alone = shutil.copy(directory / "checkpoints" / "best.ckpt", tmp_path / "alone.ckpt")
    for place in (directory, Path(alone)):
        with pytest.raises(UserError) as error:
            memlab.load(place, device="cpu")
        check(str(error.value), message, str(place))
    assert not canary.exists() and sorted(os.listdir(tmp_path)) == ["alone.ckpt", "code", "run"]


@pytest.mark.parametrize("name", ["a class", "a nested module", "the environment"])
def test_commands_on_a_hostile_run(
    name: str, whole: Path, start: Start, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, message = RUNS[name]
    directory = run(whole, start.place / "run", set_keys(**changes))
    check(start.message("evaluate", "run=run", "samples=4", job=True), message, str(directory))
    check(
        start.message("generate", f"run={directory / 'checkpoints' / 'best.ckpt'}", job=True), message, "run"
    )
    tags = SimpleNamespace(data=SimpleNamespace(tags={"memlab.run_dir": "run"}))
    monkeypatch.setattr(mlflow_client, "existing", lambda *_: SimpleNamespace(get_run=lambda _: tags))
    check(start.message("evaluate", f"run={'0' * 32}", job=True), message, "run")
    assert not canary.exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system [touch it_ran]", "!!python/name:os.system", "!!python/module:os"]
)
def test_a_tag_in_a_configuration(whole: Path, start: Start, canary: Path, tag: str) -> None:
    run(whole, start.place / "run")
    with open("run/config.yaml", "a") as file:
        file.write(f"more: {tag}\n")
    found = start.message("evaluate", "run=run", job=True)
    assert "config.yaml cannot be read: could not determine a constructor" in found
    found = start.message("compare", "runs=[run]", job=True)
    assert "none can be compared" in found and "has a damaged config.yaml" in found
    (start.place / "space.yaml").write_text(f"base: {tag}\n")
    assert "space.yaml is not YAML" in start.message("sweep", "sweep=space.yaml")
    assert "is not YAML" in start.message("train", "experiment_file=space.yaml")
    assert not canary.exists()


class Bomb:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("where", ["memlab", "all", "pickle"])
def test_a_pickle_in_a_checkpoint(whole: Path, start: Start, canary: Path, where: str) -> None:
    file = run(whole, start.place / "run") / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    bomb = Bomb(f"touch {canary}")
    if where == "pickle":
        file.write_bytes(pickle.dumps(bomb))
    else:
        torch.save(
            bomb if where == "all" else {**checkpoint, where: {**checkpoint[where], "more": bomb}}, file
        )
    found = start.message("evaluate", "run=run", job=True)
    assert f"{file} is damaged" in found and not canary.exists()


@pytest.mark.parametrize("config", [None, [], "text", 3])
def test_a_checkpoint_without_a_configuration(whole: Path, start: Start, config: object) -> None:
    file = run(whole, start.place / "run") / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["hyper_parameters"] = config if config is None else {"config": config}
    torch.save(checkpoint, start.place / "alone.ckpt")
    assert "alone.ckpt has no configuration of a run" in start.message("evaluate", "run=alone.ckpt", job=True)


def test_a_run_of_a_stranger_that_is_allowed(whole: Path, start: Start, canary: Path) -> None:
    """And only for the command that allows it."""
    changes = set_keys(task___target_=f"{EVIL}.Task", model__tokens=f"{EVIL}.Tokens")
    place = str(run(whole, start.place / "run", changes))
    for trusted in (EVIL, [EVIL], ["evil_of_strangers"]):
        opened = memlab.load(place, device="cpu", trust=trusted)
        assert type(opened.task).__module__ == type(opened.model.tokens).__module__ == EVIL
    assert canary.exists()
    with pytest.raises(UserError, match=REFUSED):
        memlab.load(place, device="cpu", trust=[OTHER, "evil_of_strangers.inner.more"])
    begun = start.begun("evaluate", "run=run", "trust=[evil_of_strangers]").config
    assert begun.trust == ["evil_of_strangers"]  # type: ignore[attr-defined]
    assert "trust" not in opened.config.model_dump()


def test_a_module_of_the_folder_of_configurations(whole: Path, start: Start, capsys: Any) -> None:
    run(whole, start.place / "run", set_keys(task___target_=f"{EVIL}.Task"))
    (start.place / "code" / "configs").mkdir()
    (start.place / "elsewhere").mkdir()
    assert REFUSED in start.message("evaluate", "--config-dir", "elsewhere", "run=run", job=True)
    start.finished("evaluate", "--config-dir", "code/configs", "run=run", "inside=2")
    assert "memory" in capsys.readouterr().out


def test_a_task_may_not_be_trained_by_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memlab.config import trust
    from memlab.tasks.copy import Copy
    from memlab.training import build
    from tests.training import resuming

    config = resuming.config(tmp_path / "run")
    monkeypatch.setattr(Copy, "trained_by", f"{OTHER}.function")
    with pytest.raises(UserError, match=f"trained_by={OTHER}.function {REFUSED}"):
        build.build(config)
    assert not (tmp_path / "it_ran").exists()
    with trust.allowing(OTHER), pytest.raises((UserError, TypeError)):
        build.build(config)  # it makes no training


def test_results_in_mlflow_are_only_text(start: Start, canary: Path, tmp_path: Path) -> None:
    """A configuration among a stranger's artifacts is read and compared; no class is looked for."""
    (tmp_path / "config.yaml").write_text("model: {name: !!python/object/apply:os.system [touch it_ran]}\n")
    info = SimpleNamespace(run_id="0" * 32, status="FINISHED", run_name="of \x1b[31mothers", end_time=1)
    stored = SimpleNamespace(info=info, data=SimpleNamespace(params={"model.name": "x"}, tags={}, metrics={}))
    client = SimpleNamespace(download_artifacts=lambda *_: str(tmp_path / "config.yaml"))
    found = stored_runs.from_mlflow(client, stored)
    assert isinstance(found, stored_runs.LeftOut) and found.reason == "has a damaged config.yaml"
    assert not canary.exists()


@pytest.mark.parametrize("changes", [{"state_dict": None}, {"state_dict": {"x": "y"}}, {"global_step": "x"}])
def test_a_checkpoint_with_other_things(changes: dict[str, Any], whole: Path, start: Start) -> None:
    file = run(whole, start.place / "run") / "checkpoints" / "best.ckpt"
    torch.save({**torch.load(file, weights_only=True), **changes}, file)
    found = start.message("evaluate", "run=run", job=True)
    assert f"{file} is damaged" in found or "its weights do not fit" in found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("memory", {"state_bytes": "x"}),
        ("memory", 3),
        ("timing", []),
        ("versions", "x"),
        ("parameters", None),
    ],
)
def test_a_result_with_other_things(key: str, value: object, whole: Path, tmp_path: Path) -> None:
    file = run(whole, tmp_path / "run") / "result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    found = stored_runs.from_directory(tmp_path / "run")
    assert isinstance(found, stored_runs.LeftOut) and re.match(
        "cannot be read|has a damaged result", found.reason
    )
