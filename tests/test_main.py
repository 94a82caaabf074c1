"""`memlab` and `python -m memlab`: the list of commands, and that a command run from there is the command
itself.
"""

from __future__ import annotations

import ast
import importlib
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

import memlab
from memlab.__main__ import COMMANDS

REPOSITORY = Path(__file__).parents[1]


def python(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, cwd=REPOSITORY)


def run_here(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """A process that runs `code`, then `memlab *words` as the console command does."""
    return python("-c", f"import sys; sys.argv[1:] = {list(words)!r}\n{code}\nmemlab.__main__.main()")


def test_the_table_has_every_command_and_nothing_else() -> None:
    """A command is a file of memlab/ with a `main`; each has a script `memlab-NAME` too."""

    def has_main(file: Path) -> bool:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        return any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body)

    files = (REPOSITORY / "memlab").glob("*.py")
    assert COMMANDS.keys() == {file.stem for file in files if has_main(file)} - {"__main__"}
    scripts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert scripts == {
        "memlab": "memlab.__main__:main",
        **{f"memlab-{name}": f"memlab.{name}:main" for name in COMMANDS},
    }
    for place in scripts.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_the_list_has_a_line_for_each_command(words: tuple[str, ...]) -> None:
    told = python("-m", "memlab", *words)
    assert (told.returncode, told.stderr) == (0, "")
    for name, what in COMMANDS.items():
        assert [line.split() for line in told.stdout.splitlines()].count([name, *what.split()]) == 1


def test_the_list_is_there_at_once() -> None:
    """Nothing heavy is imported for it."""
    heavy = {"torch", "lightning", "hydra", "numpy", "pydantic", "yaml"}
    code = "import atexit, memlab.__main__; atexit.register(lambda: print('loaded', *sys.modules))"
    told = run_here(code)
    loaded = set(told.stdout.splitlines()[-1].split())
    assert "memlab.errors" in loaded and not loaded & heavy
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        python("-m", "memlab")
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < 0.5


@pytest.mark.parametrize("module", ["memlab", "memlab.train", "memlab.compare"])
def test_version_is_that_of_memlab(module: str) -> None:
    told = python("-m", module, "--version")
    assert (told.returncode, told.stdout) == (0, f"memlab {memlab.__version__}\n")


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("trian", "'train'"), ("evalute", "'evaluate'"), ("--versoin", None), ("model=rmt", None)],
)
def test_an_unknown_command_is_one_message(wrong: str, near: str | None) -> None:
    told = python("-m", "memlab", wrong, "task=reverse")
    assert told.returncode == 2 and told.stdout == ""
    assert (
        told.stderr.startswith(f"memlab: error: no command is named {wrong!r}.")
        and told.stderr.count("\n") == 1
    )
    assert ("Did you mean" in told.stderr) == (near is not None)
    assert near is None or f"Did you mean {near}?" in told.stderr
    assert all(name in told.stderr for name in COMMANDS)


@pytest.mark.parametrize(
    "words",
    [
        ("train", "--help"),
        ("compare", "--help"),
        ("show", "task=reverse", "samples=1"),
        ("show", "task=revers"),  # a user's mistake: one message, status 2
        ("train", "--no-such-flag"),  # argparse's own
    ],
)
def test_a_command_is_the_same_from_here(words: tuple[str, ...]) -> None:
    name, *rest = words
    here, itself = python("-m", "memlab", *words), python("-m", f"memlab.{name}", *rest)
    assert (here.stdout, here.stderr, here.returncode) == (itself.stdout, itself.stderr, itself.returncode)
    assert here.stdout or here.stderr


def test_arguments_signals_and_statuses_pass_through() -> None:
    """The command runs in this very process."""
    replace = "import os, memlab.__main__, memlab.show; memlab.show.main = lambda: {}"
    told = run_here(replace.format("print(sys.argv[1:])"), "show", "task=copy", "--flag", "")
    assert (told.returncode, told.stdout) == (0, "['task=copy', '--flag', '']\n")
    assert run_here(replace.format("sys.exit(143)"), "show").returncode == 143
    killed = run_here(replace.format("os.kill(os.getpid(), 15)"), "show")
    assert killed.returncode == -signal.SIGTERM
