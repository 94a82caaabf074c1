"""The tasks that the conformance suites run over: every file of configs/task/, and the example of
CONTRIBUTING.md, which is a user's own. There is no list to edit.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args, get_origin

import yaml

from memlab.config import schema
from memlab.config.paths import config_dir
from memlab.tasks.base import SyntheticTask, Task
from tests.contributing import examples
from tests.tasks.promises import Solve

TESTS = Path(__file__).parents[1]
EXAMPLE = examples()  # a folder with the module, its YAML and its oracle
sys.path.append(str(EXAMPLE))
FILES = sorted([*Path(config_dir(), "task").glob("*.yaml"), *EXAMPLE.glob("task/*.yaml")])


@dataclass(frozen=True)
class Case:
    """A file of a task, and options that differ from it."""

    file: Path
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        return "-".join([self.file.stem, *(f"{key}={value}" for key, value in self.changes)])

    @cached_property
    def values(self) -> dict[str, Any]:
        """The task's keys in the file: all of it, or its section `task`."""
        content = yaml.safe_load(self.file.read_text(encoding="utf-8"))
        return dict(content.get("task", content))

    @property
    def target(self) -> str:
        return str(self.values["_target_"])

    @property
    def kind(self) -> type[Task]:
        found: type[Task] = schema.load(self.target)
        return found

    def make(self, **more: Any) -> Any:
        """The task, with further options."""
        values = {key: value for key, value in self.values.items() if key not in ("_target_", "name")}
        return self.kind(**{**values, **dict(self.changes), **more})

    def solve(self) -> Solve:
        """The oracle: from what is read of a sample (ids; -1 in the place of the answer's own tokens), the
        ids of the answer.
        """
        own = self.file.parents[1] / "oracles"
        found = beside(own if own.is_dir() else TESTS / "tasks" / "oracles", self.file.stem)
        assert found is not None, (
            f"{self.file.stem} has no oracle: write tests/tasks/oracles/{self.file.stem}.py with "
            "solve(task, read) -> answer, both lists of token ids, which solves the task from all that is "
            "read and shares no code with it"
        )
        solve: Solve = found.solve
        return solve


def beside(folder: Path, name: str) -> ModuleType | None:
    """The module of this name in a folder, if there is one."""
    file = folder / f"{name}.py"
    if not file.is_file():
        return None
    spec = importlib.util.spec_from_file_location(f"{folder.name}_{name}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def is_generated(file: Path) -> bool:
    return issubclass(Case(file).kind, SyntheticTask)


def cases() -> list[Case]:
    """Each file of a generated task as it is, and with one option at a time changed: words (`Literal`
    arguments) and switches.
    """
    found = []
    for file in filter(is_generated, FILES):
        whole = Case(file)
        found.append(whole)
        for key, parameter in schema.parameters(whole.target).items():
            kind, now = parameter.annotation, whole.values[key]
            words = get_args(kind) if get_origin(kind) is Literal else ()
            switch = (not now,) if kind is bool else ()
            found += [Case(file, ((key, value),)) for value in (*words, *switch) if value != now]
    return found
