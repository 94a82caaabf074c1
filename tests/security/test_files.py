"""Files that a stranger hands over for one's own command: a preset, a file of overrides, a sweep."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from memlab.config import cli
from memlab.config.checks import check
from memlab.config.sections import Config
from memlab.sweeping import conclusion
from memlab.sweeping.order import Order
from memlab.sweeping.plan import Plan
from tests.mistakes.starting import Start
from tests.security.strangers import EVIL, OTHER

REFUSED = "is not one of memlab's classes, and its module has not been imported"
REPLACED = "would be replaced when the file is opened"
NO_HYDRA = "is set in a file: of Hydra's own settings, memlab reads only hydra.sweeper.params of a preset"
TASK = "defaults: [copy]\n_target_: {}\n"
OF_HYDRA = "# @package _global_\nhydra: {}\n"
CALL = "{_target_: subprocess.Popen, args: [touch, it_ran]}"
CALLBACK = OF_HYDRA.format(f"{{callbacks: {{x: {CALL}}}}}")
LOG = "{version: 1, handlers: {x: {(): subprocess.Popen, args: [touch, it_ran]}}, root: {handlers: [x]}}"
NO_NAME = "runs are in a directory of this name, so it has no / and no control characters"
PRESETS: dict[str, tuple[str, str, str]] = {  # file, content, message
    "a class": ("task", TASK.format("subprocess.Popen"), f"task._target_=subprocess.Popen {REFUSED}"),
    "a function": ("task", TASK.format("os.system"), f"task._target_=os.system {REFUSED}"),
    "a nested module": ("task", TASK.format(f"{EVIL}.Task"), rf"trust=\[{EVIL}\]"),
    "a memory": ("model", f"defaults: [rmt]\nlayer_memory: {EVIL}.Memory\n", REFUSED),
    "tokens": ("tokens", f"# @package model\ntokens: {OTHER}.Tokens\n", REFUSED),
    "a policy": (
        "policy",
        f"# @package policy\nname: {EVIL}.Policy\nbudget: 4\n",
        f"policy.name=.*{REFUSED}",
    ),
    "a callback": ("experiment", CALLBACK, f"hydra.callbacks {NO_HYDRA}"),
    "a launcher": (
        "experiment",
        OF_HYDRA.format("{launcher: {_target_: subprocess.Popen}}"),
        f"hydra.launcher {NO_HYDRA}",
    ),
    "a log": ("experiment", OF_HYDRA.format(f"{{job_logging: {LOG}}}"), f"hydra.job_logging {NO_HYDRA}"),
    "Hydra's log": (
        "experiment",
        OF_HYDRA.format(f"{{hydra_logging: {LOG}}}"),
        f"hydra.hydra_logging {NO_HYDRA}",
    ),
    "a variable": ("experiment", OF_HYDRA.format("{job: {env_set: {PATH: x}}}"), f"hydra.job {NO_HYDRA}"),
    "a place of Hydra": (
        "experiment",
        OF_HYDRA.format("{output_subdir: x}"),
        f"hydra.output_subdir {NO_HYDRA}",
    ),
    "what is trusted": ("experiment", f"# @package _global_\ntrust: [{OTHER}]\n", "trust is set in a file"),
    "a place": ("model", "defaults: [rmt]\nname: ../../mine\n", rf"model\.name=\.\./\.\./mine: {NO_NAME}"),
    "the terminal": ("task", 'defaults: [copy]\nname: "x\\e[2J"\n', rf"task\.name=x\\x1b\[2J: {NO_NAME}"),
    "a root": ("", CALLBACK, "memlab has a file train.yaml itself"),
}


def preset(start: Start, name: str) -> tuple[list[str], str]:
    """The words that use a preset, and its message."""
    group, content, message = PRESETS[name]
    place = start.place / "theirs" / group
    place.mkdir(parents=True)
    (place / ("mine.yaml" if group else "train.yaml")).write_text(content)
    more = ["layer_memory=cached"] if group == "policy" else []
    return ["--config-dir", "theirs", *([f"{group}=mine"] if group else []), *more], message


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset(name: str, start: Start, canary: Path) -> None:
    words, message = preset(start, name)
    assert re.search(message, found := start.message("train", *words)), found
    assert found.isprintable() and not canary.exists() and not Path("it_ran").exists()


@pytest.mark.parametrize(
    ("flag", "name"),
    [
        ("--help", "Hydra's log"),
        ("--info=config", "a callback"),
        ("-m", "a log"),
        ("--cfg=job", "a callback"),
    ],
)
def test_a_preset_that_is_only_looked_at(name: str, flag: str, start: Start, canary: Path) -> None:
    words, message = preset(start, name)
    assert re.search(message, start.message("train", flag, *words))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (f"{{task._target_: '{EVIL}.Task,memlab.tasks.copy.Copy'}}", REFUSED),
        (f"{{trust: '[{OTHER}]'}}", "trust is set in a file"),
        ("{hydra.callbacks: x}", "memlab does not read Hydra's own settings"),
    ],
)
def test_what_a_preset_goes_through(params: str, message: str, start: Start, canary: Path) -> None:
    (start.place / "theirs" / "experiment").mkdir(parents=True)
    content = OF_HYDRA.format(f"{{sweeper: {{params: {params}}}}}")
    (start.place / "theirs" / "experiment" / "mine.yaml").write_text(content)
    found = start.message("train", "-m", "--config-dir", "theirs", "experiment=mine", "task=copy")
    assert re.search(message, found), found
    assert not canary.exists()


def test_a_preset_of_other_commands(start: Start, canary: Path) -> None:
    words, message = preset(start, "a class")
    for command in ("show", "bench"):
        assert re.search(message, start.message(command, *words))
    (start.place / "theirs" / "evaluate.yaml").write_text("run: x\n")
    found = start.message("evaluate", "--config-dir", "theirs", "run=run")
    assert "memlab has a file evaluate.yaml itself" in found


BEST: dict[str, tuple[str, str]] = {
    "a class": ("task._target_: subprocess.Popen", REFUSED),
    "nested keys": (f"task: {{_target_: {EVIL}.Task}}", REFUSED),
    "a memory": (f"model.layer_memory: [{OTHER}.Memory]", REFUSED),
    "tokens": (f"model.tokens: {OTHER}.Tokens", REFUSED),
    "what is trusted": (f"trust: [{OTHER}]", "trust is only read from the command line"),
    "the environment": ("optim.lr: ${oc.env:OF_STRANGERS_TEST}", REPLACED),
    "in another": ("optim.lr: ${${model.name}:HOME}", REPLACED),
    "Hydra": ("hydra.callbacks: {x: {_target_: os.system}}", "memlab does not read Hydra's own settings"),
    "the terminal": ('run_dir: "x\\e[2J"', r"run_dir=x\\x1b\[2J has a control character"),
    "a place": ("model.name: ../x", NO_NAME),
}


@pytest.mark.parametrize("name", BEST)
def test_overrides_in_a_file(name: str, start: Start, canary: Path) -> None:
    content, message = BEST[name]
    (start.place / "best.yaml").write_text(content + "\n")
    for more in ([], ["-m", "seed=1,2"]) if name in ("a class", "the environment") else [[]]:
        found = start.message("train", "experiment_file=best.yaml", *more)
        assert re.search(message, found), found
        assert found.isprintable() and "a secret" not in found
    assert not canary.exists()


SWEEP = {
    "base": {"model": "rmt", "task": "copy"},
    "space": {"optim.lr": {"type": "float", "low": 0.001, "high": 0.01, "log": True}},
    "objectives": [{"metric": "val/score", "direction": "maximize"}],
    "budget": {"trials": 2},
}
CLASSES = {"type": "categorical", "choices": ["memlab.tasks.copy.Copy", f"{EVIL}.Task"]}
SWEEPS: dict[str, tuple[dict[str, object], str]] = {
    "a class": ({"base": {"task._target_": "subprocess.Popen"}}, f"sweep=.*, base: .*{REFUSED}"),
    "a memory": ({"base": {"model.layer_memory": f"{OTHER}.Memory"}}, REFUSED),
    "in the space": ({"space": {"task._target_": CLASSES}}, f"space.task._target_: .*{REFUSED}"),
    "an arm": ({"arms": {"key": "model.tokens", "values": ["rmt", f"{EVIL}.Tokens"]}}, REFUSED),
    "a place": ({"arms": {"key": "model.name", "values": ["x", "../../y"]}}, "'../../y' cannot be the name"),
    "above": ({"arms": {"key": "model.name", "values": ["x", ".."]}}, "'..' cannot be the name"),
    "what is trusted": ({"base": {"trust": [OTHER]}}, "trust is set by the sweep itself"),
    "trusted at all": ({"trust": [OTHER]}, "trust is only read from the command line"),
    "the environment": ({"base": {"optim.lr": "${oc.env:HOME}"}}, REPLACED),
    "the terminal": ({"name": "x\x1b[2J"}, r"name=x\\x1b\[2J has a control character"),
}  # fmt: skip


@pytest.mark.parametrize("name", SWEEPS)
def test_a_sweep(name: str, start: Start, canary: Path) -> None:
    changes, message = SWEEPS[name]
    (start.place / "theirs.yaml").write_text(yaml.safe_dump(SWEEP | changes))
    found = start.message("sweep", "sweep=theirs.yaml")
    assert re.search(message, found), found
    assert found.isprintable() and not canary.exists()


def test_a_directory_of_a_sweep_that_has_finished_is_only_text(capsys: pytest.CaptureFixture[str]) -> None:
    best = {"trial": 1, "parameters": {"[link=x]a\x1b[2J": "[/]b"}, "values": {"val/score\x1b[2J": 1.0}}
    trials = {"complete": 1, "pruned": 0, "failed": 0}
    conclusion.show({"study": "x[/y]\x1b[2J", "trials": trials, "best": best, "seeds": [0]}, Path("there"))
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and r"sweep x[/y]\x1b[2J: 1 complete" in shown and r"[link=x]a\x1b[2J" in shown
    assert "[/]b" in shown


def test_what_a_person_types_needs_no_permission(start: Start, canary: Path) -> None:
    words = [f"model.layer_memory={EVIL}.Memory", f"task._target_={OTHER}.Task", "tracking=off"]
    begun = start.begun("train", *words).config
    assert isinstance(begun, Config) and begun.trust == [] and canary.exists()
    assert "trust" not in begun.model_dump()
    start.begun("show", f"task._target_={OTHER}.Task")
    start.begun("train", "-m", f"model.layer_memory={EVIL}.Memory,transformer_xl", "tracking=off")


def test_what_is_allowed(start: Start, canary: Path) -> None:
    """A file of overrides, a preset, and a sweep, whose trainings and whose best then are allowed it too."""
    (start.place / "best.yaml").write_text(f"task._target_: {OTHER}.Task\n")
    begun = start.begun("train", "experiment_file=best.yaml", f"trust=[{OTHER}]", "tracking=off").config
    assert isinstance(begun, Config) and begun.trust == [OTHER] and canary.exists()
    words, _ = preset(start, "a nested module")
    start.begun("show", *words, "trust=[evil_of_strangers]")
    start.begun("show", *words, "trust=evil_of_strangers.inner")
    (start.place / "theirs.yaml").write_text(yaml.safe_dump(SWEEP | SWEEPS["a memory"][0]))
    for word in (f"trust=[{OTHER}]", f"base.model.layer_memory={OTHER}.Memory"):
        plan = start.begun("sweep", "sweep=theirs.yaml", word, "tracking=off").config
        assert isinstance(plan, Plan) and plan.config.trust == [OTHER]
    assert conclusion.options(None, plan.config.trust) == f"'trust=[{OTHER}]' "
    order = Order(
        spec=plan.spec, study="s", storage="", run_dir="r", trials=1, since=[0], max_steps=1, trust=[OTHER]
    )
    assert f"trust=[{OTHER}]" in order.words(None, {}, 0, Path("x"))


@pytest.mark.parametrize(
    "word", ["trust=[a/b]", "trust=3", "trust=[1]", "trust=a,b", "trust=null", "trust={a: b}"]
)
def test_what_is_no_list_of_modules(word: str, start: Start) -> None:
    assert re.search(r"such as trust=\[my_module\]", start.message("train", word))


def test_a_task_that_is_no_task(canary: Path) -> None:
    """What a person types is imported, and still has to be of the right kind."""
    for target, message in (
        (f"{OTHER}.NoTask", "task"),
        (f"{OTHER}.function", "has no class 'function'"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            cli.compose_checked("train", ["task=copy", f"task._target_={target}"], check)
