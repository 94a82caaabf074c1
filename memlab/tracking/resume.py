"""Which run a command continues: found, and its configuration compared,
in well under a second and before anything is written.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from filelock import FileLock, Timeout

from memlab.errors import UserError
from memlab.files import DamagedFileError, check_place, exists, read_object
from memlab.tracking import earlier

# What may differ from the run that is continued: where things are kept and how often they are reported, not
# what is computed.
_PROCESSES = {
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.accumulate",
}
NEVER = {"run_dir", "resume", "experiment_file", "jobs", "trainer.test"}
FREE = {
    *NEVER,
    "trainer.threads",
    "trainer.log_every",
    "trainer.checkpoint_every",
    "task.workers",
    "task.cache_dir",
}
FREE |= _PROCESSES | {"trainer.recompute", "trainer.recompute_together"}
FREE |= {"generations", "test_prompts", "rows", "workers", "threads", "accelerator"}  # of memlab.evolve
# keys that runs begun before them lack
ADDED: dict[str, Any] = {"trainer.recompute": "none", "curriculum.by": "task", "curriculum.mixed": False}
ADDED |= {"trainer.train": "all", "lora.rank": 8, "lora.alpha": 16.0, "lora.targets": ["q", "v"]}
ADDED |= {"model.qk_norm": False, "model.first_position": "token"}
_FREE_GROUPS = ("tracking.",)
LOCK = ".lock"  # in a run's directory, held by the process that works there
_TIME_STAMP = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-\d{6}")  # as in configs/train.yaml


class Resumable(Protocol):
    """The configuration of a command whose runs can be continued."""

    @property
    def run_dir(self) -> str: ...

    @property
    def resume(self) -> str: ...

    def model_dump(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Origin:
    """Where a training begins.

    Attributes:
        directory: of the run that is continued; None = a new run.
        result: if that run has finished, its `result.json`.
    """

    directory: Path | None = None
    result: dict[str, Any] | None = None


def find(config: Resumable) -> Origin:
    """What `resume` asks for; `auto` says what it found in a line.

    Raises:
        UserError: there is no run to continue, or its configuration is another one.
    """
    place = Path(config.run_dir).absolute()
    check_place(f"run_dir={config.run_dir}", place)
    if config.resume == "never":
        if _is_run(place) and not _in_use(place):  # `RunDirectory` reports the other
            raise UserError(
                f"run_dir={config.run_dir} already holds a run ({place / 'config.yaml'}); give another "
                "run_dir, or resume=auto to continue it"
            )
        return Origin()
    if config.resume != "auto":
        directory = Path(config.resume).expanduser().absolute()
        if not _is_default(place) and place != directory:
            raise UserError(
                f"resume={config.resume} continues the run in that directory; run_dir={config.run_dir} "
                "contradicts it, leave it out"
            )
        if not _is_run(directory):
            raise UserError(
                f"resume={config.resume}: there is no run (no config.yaml); resume takes never, auto, or the "
                "directory of a run"
            )
        return _checked(config, directory, f"resume={config.resume}")
    if _is_run(place):
        return _checked(config, place, f"run_dir={config.run_dir}")
    if _is_default(place) and (found := _newest(config, place.parent)):
        return _checked(config, found, str(found))
    print("memlab: resume=auto: there is no such run yet; a new one begins", file=sys.stderr)
    return Origin()


def _is_run(directory: Path) -> bool:
    return exists(str(directory), directory / "config.yaml")


def _in_use(directory: Path) -> bool:
    """Whether another process works in a run's directory at this moment."""
    if not (directory / LOCK).exists():
        return False
    try:
        with FileLock(directory / LOCK, timeout=0):
            return False
    except Timeout:
        return True


def _is_default(directory: Path) -> bool:
    """Whether `run_dir` is the default: its name is the moment of the start,
    so no later command has the same.
    """
    return _TIME_STAMP.fullmatch(directory.name) is not None


def _newest(config: Resumable, parent: Path) -> Path | None:
    """The newest run of exactly this configuration; an unfinished one before all finished ones."""
    wanted = _comparable(config.model_dump())
    runs = [d for d in sorted(parent.glob("*"), reverse=True) if _is_default(d) and _is_run(d)]
    same = [d for d in runs if _comparable(_saved(d)) == wanted]
    return next((d for d in same if _result(d) is None), same[0] if same else None)


def _comparable(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in flatten(values).items() if key not in NEVER | _PROCESSES}


def _checked(config: Resumable, directory: Path, named: str) -> Origin:
    """The run in a directory, if this configuration may continue it."""
    saved = _saved(directory)
    if not saved:
        raise UserError(
            f"{named}: {directory / 'config.yaml'} is empty or damaged, so what was trained there is not "
            "known; start again, with another run_dir"
        )
    earlier.refuse(named, saved)
    result = _result(directory)
    if result is None and (directory / "result.json").exists():
        print(
            f"memlab: {directory / 'result.json'} is empty or damaged; it is made again from the run's last "
            "checkpoint",
            file=sys.stderr,
        )
    now = flatten(config.model_dump())
    before = {key: value for key, value in ADDED.items() if key in now} | flatten(saved)
    keys = [k for k in [*now, *(before.keys() - now.keys())] if before.get(k) != now.get(k)]
    differing = [
        k
        for k in keys
        if k not in FREE
        and not k.startswith(_FREE_GROUPS)
        and not (k not in before and now[k] is None)
        # the main branch then may be this commit: what is read is compared later (data_record.py)
        and not (k == "task.source_revision" and before.get(k) is None)
    ]
    if differing == ["trainer.max_steps"] and now["trainer.max_steps"] > before["trainer.max_steps"]:
        if result is not None:
            raise UserError(
                f"{named}: the run has finished after {result['steps']} steps; trainer.max_steps can be "
                "raised only before, start a new run"
            )
        if now["optim.schedule"] != "constant":
            raise UserError(
                f"{named}: trainer.max_steps={now['trainer.max_steps']}, it began with "
                f"{before['trainer.max_steps']}; with optim.schedule={now['optim.schedule']} every learning "
                "rate would have been another, only optim.schedule=constant can go on for longer"
            )
        differing = []
    if differing:
        differing.sort(key=lambda k: not k.endswith(".name"))  # another model or task says most
        listed = ", ".join(f"{k}={_word(before, k)} (now {_word(now, k)})" for k in differing[:3])
        more = f", and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise UserError(
            f"{named} holds a run of another configuration: {listed}{more}. Give the same values, or another "
            "run_dir"
        )
    if rounding := [
        k
        for k in keys
        if k in ("trainer.threads", "trainer.recompute", "trainer.recompute_together")
        or (k in _PROCESSES and k in before)
    ]:
        print(
            f"memlab: {', '.join(rounding)} differs from before: sums may be rounded otherwise, and losses "
            "differ in the last bits",
            file=sys.stderr,
        )
    return Origin(directory, result)


def _word(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "nothing"
    return "null" if values[key] is None else str(values[key])


def _saved(directory: Path) -> dict[str, Any]:
    """A run's configuration; {} if it cannot be read."""
    try:
        saved = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return saved if isinstance(saved, dict) else {}


def _result(directory: Path) -> dict[str, Any] | None:
    """What a run has come to; None = it has not finished, or its result did not survive."""
    file = directory / "result.json"
    try:
        return read_object(file) if file.exists() else None
    except DamagedFileError:
        return None


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"model": {"width": 64}} -> {"model.width": 64}; keys that begin with an underscore are left out."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        if key.startswith("_"):
            continue
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
