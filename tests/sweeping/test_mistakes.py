"""What is wrong with a sweep is told in one line, before anything is made: its file, its space,
its trainings, its storage, its study.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from memlab.config import cli
from memlab.config.paths import sweep_dir
from memlab.errors import UserError
from memlab.sweep import gather
from memlab.sweeping import driver, space
from memlab.sweeping.plan import Plan, check_sweep
from memlab.sweeping.spec import Spec, load
from tests.sweeping.killing import children

GOOD: dict[str, Any] = {
    "base": {"model": "rmt", "task": "reverse", "trainer.max_steps": 20},
    "space": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "model.memory_tokens": {"type": "int", "low": 2, "high": 8, "step": 2},
    },
    "objectives": [{"metric": "val/score", "direction": "maximize"}],
    "budget": {"trials": 4},
}


def plan(tmp_path: Path, *words: str, **changes: Any) -> Plan:
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**GOOD, **changes}))
    given = [
        f"sweep={file}",
        f"run_dir={tmp_path / 'out'}",
        *([] if "tracking=mlflow" in words else ["tracking=off"]),
        *words,
    ]
    made: Plan = cli.compose_checked("sweep", gather(given), check_sweep)
    return made


def lr(**changes: Any) -> dict[str, Any]:
    return {"space": {"optim.lr": {**GOOD["space"]["optim.lr"], **changes}}}


MISTAKES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a key of the file": ({"sapce": {}}, ["unknown key 'sapce'", "Did you mean 'space'"]),
    "no space": ({"space": {}}, ["space"]),
    "a kind": (lr(type="flaot"), ["space.optim.lr", "'flaot'", "float, int, categorical"]),
    "a bound": (lr(low=1.0), ["space.optim.lr", "low=1 and high=0.01 are no range"]),
    "a logarithm": (lr(low=0.0), ["space.optim.lr", "low=0 has no logarithm"]),
    "a value's type": (lr(low="abc"), ["space.optim.lr.low='abc'", "number"]),
    "a key of a dimension": (lr(lo=1), ["unknown key 'space.optim.lr.lo'"]),
    "a key of the training": (
        {"space": {"optim.rl": GOOD["space"]["optim.lr"]}},
        ["space.optim.rl", "unknown key 'optim.rl'", "weight_decay"],
    ),
    "a value of the training": (
        {"space": {"model.heads": {"type": "categorical", "choices": [4, "many"]}}},
        ["space.model.heads", "model.heads='many'", "integer"],
    ),
    "a range that the training refuses": (
        {"space": {"model.dropout": {"type": "float", "low": 0.0, "high": 1.5}}},
        ["space.model.dropout", "1.5", "less than 1"],
    ),
    "a key of base": (
        {"base": {**GOOD["base"], "task.lenght": 3}},
        ["base", "unknown key 'task.lenght'", "Did you mean 'length'"],
    ),
    "a value of base": (
        {"base": {**GOOD["base"], "trainer.max_steps": -1}},
        ["base", "trainer.max_steps=-1"],
    ),
    "a model": ({"base": {**GOOD["base"], "model": "rnt"}}, ["Did you mean 'rmt'"]),
    "fixed and searched": ({"base": {**GOOD["base"], "optim.lr": 1e-3}}, ["optim.lr is in space and base"]),
    "what the sweep sets": ({"base": {**GOOD["base"], "run_dir": "x"}}, ["run_dir is set by the sweep"]),
    "the test as objective": (
        {"objectives": [{"metric": "test/accuracy", "direction": "maximize"}]},
        ["would choose on the test"],
    ),
    "a metric": (
        {"objectives": [{"metric": "val/acuracy", "direction": "maximize"}]},
        ["no val/acuracy", "Did you mean 'val/accuracy'"],
    ),
    "a metric of stages": (
        {"objectives": [{"metric": "val/accuracy", "direction": "maximize"}]},
        ["val/score", "curriculum"],
    ),
    "pruning two objectives": (
        {
            "objectives": [*GOOD["objectives"], {"metric": "memory/state_bytes", "direction": "minimize"}],
            "pruner": {"name": "median"},
        },
        ["several objectives", "name: none"],
    ),
    "seeds of trials in the end": ({"final": {"seeds": [0, 1]}}, ["final.seeds", "seeds that no trial had"]),
    "a condition": (
        {
            "space": {
                **GOOD["space"],
                "optim.gate_lr": {**GOOD["space"]["optim.lr"], "when": {"modle": "rmt"}},
            }
        },
        ["space.optim.gate_lr.when", "Did you mean 'model'"],
    ),
    "a condition that never holds": (
        {
            "space": {
                **GOOD["space"],
                "optim.gate_lr": {**GOOD["space"]["optim.lr"], "when": {"model": "infini"}},
            }
        },
        ["model is never 'infini'"],
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_told_in_one_line(name: str, tmp_path: Path) -> None:
    changes, parts = MISTAKES[name]
    with pytest.raises(UserError) as caught:
        plan(tmp_path, **changes)
    message = str(caught.value)
    assert all(part in message for part in parts) and "\n" not in message, message
    assert not (tmp_path / "out").exists()


WORDS = {
    "sweep=rmt_revers": ["Did you mean 'rmt_reverse'"],
    "trials=0": ["trials=0", "greater than or equal to 1"],
    "workers=two": ["workers='two'", "integer"],
    "base.task.lenght=3": ["unknown key 'task.lenght'"],
    "base.optim.lr=3": ["optim.lr is in space and base"],
    "study=a/b": ["study", "letters, digits"],
    "grace=5": ["grace=5 s", "at least 30"],
    "tryals=3": ["unknown key 'tryals'", "Did you mean 'trials'"],
}


@pytest.mark.parametrize("word", WORDS)
def test_a_mistake_on_the_command_line(word: str) -> None:
    given = [word] if word.startswith("sweep=") else ["sweep=rmt_reverse", word]
    with pytest.raises(UserError) as caught:
        cli.compose_checked("sweep", gather(given), check_sweep)
    assert all(part in str(caught.value) for part in WORDS[word]), caught.value


STORAGES = {
    "mysql://me:secret@host/db": ["mysql is not supported", "postgresql://"],
    "postgresql://me:secret@127.0.0.1:1/db": ["127.0.0.1:1/db", "refused"],
    "postgresql://me:secret@no.such.host.invalid/db": ["no.such.host.invalid"],
    "sqlite://": ["has to be a file"],
    "nonsense": ["not a URL"],
}


@pytest.mark.parametrize("url", STORAGES)
def test_a_storage_that_cannot_be_used(url: str, tmp_path: Path) -> None:
    if url.startswith("postgresql"):
        pytest.importorskip("psycopg")
    with pytest.raises(UserError) as caught:
        driver.run(plan(tmp_path, f"storage='{url}'"))
    message = str(caught.value)
    assert (
        all(part in message for part in STORAGES[url]) and "\n" not in message and "secret" not in message
    ), message
    assert not (tmp_path / "out").exists()


def test_a_storage_that_is_something_else(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("not a database, whatever its name says " * 50)
    with pytest.raises(UserError, match=r"notes\.txt cannot be used: file is not a database"):
        driver.run(plan(tmp_path, f"storage='sqlite:///{file}'"))
    assert not (tmp_path / "out").exists()


def test_an_mlflow_server_that_does_not_answer(tmp_path: Path) -> None:
    before = set(children(os.getpid()))
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^tracking\.uri=http://127\.0\.0\.1:1: .*refused$"):
        driver.run(plan(tmp_path, "tracking=mlflow", "tracking.uri=http://127.0.0.1:1"))
    assert time.monotonic() - began < 30
    assert not (tmp_path / "out" / "trials").exists()
    assert set(children(os.getpid())) <= before, "workers that were waiting for their order"


def test_an_existing_study_of_another_space(tmp_path: Path) -> None:
    first = plan(tmp_path, f"storage='sqlite:///{tmp_path / 'shared.db'}'")
    driver._open(first)[0].close()
    for changes, parts in (
        (
            {"space": {**GOOD["space"], **lr(high=0.1)["space"]}},
            ["space.optim.lr was", "high: 0.01", "high: 0.1"],
        ),
        (
            {"base": {**GOOD["base"], "trainer.max_steps": 30}},
            ["base.trainer.max_steps was 20 and is 30 now"],
        ),
        ({"seeds": [0, 1]}, ["seeds was [0] and is [0, 1] now"]),
    ):
        (tmp_path / "new").mkdir(exist_ok=True)
        with pytest.raises(UserError) as caught:
            driver.run(
                plan(
                    tmp_path / "new", f"storage='sqlite:///{tmp_path / 'shared.db'}'", "study=mine", **changes
                )
            )
        message = str(caught.value)
        assert "'mine'" in message and "study=NAME" in message and all(part in message for part in parts), (
            message
        )
        assert not (tmp_path / "new" / "out").exists()
    with sqlite3.connect(tmp_path / "shared.db") as database:
        assert database.execute("select count(*) from studies").fetchone() == (1,)
    database.close()


def test_every_sweep_that_is_shipped_is_sound() -> None:
    names = sorted(file.stem for file in Path(sweep_dir()).glob("*.yaml"))
    assert {"fair_budget", "infini_associative", "memory_pareto", "rmt_reverse"} <= set(names)
    for name in names:
        load(name)
    cli.compose_checked("sweep", ["sweep=memory_pareto"], check_sweep)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(file.stem for file in Path(sweep_dir()).glob("*.yaml")))
def test_all_its_trials_are_possible(name: str) -> None:
    cli.compose_checked("sweep", [f"sweep={name}"], check_sweep)


def test_examples_show_all_choices_and_ends() -> None:
    spec = Spec.model_validate(
        {
            **GOOD,
            "name": "x",
            "base": {"task": "reverse"},
            "space": {
                "model": {"type": "categorical", "choices": ["rmt", "infini"]},
                "model.memory_tokens": {
                    "type": "int",
                    "low": 2,
                    "high": 9,
                    "step": 3,
                    "when": {"model": "rmt"},
                },
                "optim.lr": GOOD["space"]["optim.lr"],
                "model.heads": {"type": "categorical", "choices": [1, 2, 4]},
            },
        }
    )
    shown = [parameters for _, parameters in space.examples(spec)]
    for model in ("rmt", "infini"):
        mine = [p for p in shown if p["model"] == model]
        assert {p["model.heads"] for p in mine} == {1, 2, 4} and {p["optim.lr"] for p in mine} == {1e-4, 1e-2}
        assert {p.get("model.memory_tokens") for p in mine} == ({2, 8} if model == "rmt" else {None})


def test_a_mistake_ends_the_command_with_status_2_at_once(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "memlab.sweep", "sweep=rmt_reverse", "base.task.lenght=3", "run_dir=out"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stderr.startswith(
        "memlab.sweep: error: sweep=rmt_reverse, base: unknown key 'task.lenght'"
    )
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())
