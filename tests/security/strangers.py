"""What a stranger hands over: code, and files that name it."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

CANARY = "it_ran"
OTHER = "alone_of_strangers"
EVIL = "evil_of_strangers.inner.parts"
_MARK = "import pathlib\npathlib.Path({canary!r}).touch()\n"
_PARTS = """
from memlab.memories.transformer_xl import TransformerXL
from memlab.memory_tokens.rmt import RMT
from memlab.policies.streaming import Streaming
from memlab.tasks.copy import Copy


class Task(Copy):
    pass


class Memory(TransformerXL):
    pass


class Tokens(RMT):
    pass


class Policy(Streaming):
    pass


class NoTask:
    def __init__(self, length, name): ...


def function(**options): ...
"""


def write_code(place: Path, canary: Path) -> None:
    """A package, a package in it, and modules: to import any of them leaves the canary."""
    mark = _MARK.format(canary=str(canary))
    inner = place / "evil_of_strangers" / "inner"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").write_text(mark)
    (inner / "parts.py").write_text(mark + _PARTS)
    (place / f"{OTHER}.py").write_text(mark + _PARTS)


def run(whole: Path, place: Path, change: Callable[[dict[str, Any]], object] | None = None) -> Path:
    """A copy of a run, in whose `config.yaml` and checkpoint something is changed."""
    shutil.copytree(whole, place, ignore=shutil.ignore_patterns(".lock", "figures"))
    if change is not None:
        config = yaml.safe_load((place / "config.yaml").read_text())
        change(config)
        (place / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        checkpoint = torch.load(place / "checkpoints" / "best.ckpt", weights_only=True)
        checkpoint["hyper_parameters"]["config"] = config
        torch.save(checkpoint, place / "checkpoints" / "best.ckpt")
    return place


def set_keys(**values: Any) -> Callable[[dict[str, Any]], object]:
    """Sets keys, in whose names __ stands for a dot."""

    def change(config: dict[str, Any]) -> None:
        for key, value in values.items():
            section, _, name = key.partition("__")
            if name:
                config[section][name] = value
            else:
                config[section] = value

    return change


@contextlib.contextmanager
def nothing_runs(canary: Path) -> Any:
    yield
    if canary.exists():
        pytest.fail("code of a stranger ran")
