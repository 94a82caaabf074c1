"""`memlab COMMAND ...` or `python -m memlab COMMAND ...`: list the commands, or run one in this process.

Arguments, signals and exit status of a command are exactly those of `python -m memlab.COMMAND`. Listing the
commands imports nothing heavy.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import NoReturn

from memlab.errors import suggestion
from memlab.terminal import streams
from memlab.version import __version__

COMMANDS = {
    "train": "train a model on a task: validate, keep the best checkpoint, test it once",
    "evaluate": "read a trained run at other lengths, under controls, or on an endless stream",
    "generate": "let a run on text continue a prompt",
    "export": "write a run's model as a directory that transformers, or memlab.load, opens",
    "sweep": "search hyperparameters; the search survives kills and runs on many machines",
    "evolve": "evolve a policy that says what a key-value cache keeps",
    "claims": "test published claims by their own rules, and write a page about each",
    "compare": "put runs over seeds into tables, figures and one HTML page",
    "bench": "measure speed and memory, interleaved and with spread",
    "show": "print a few samples of a task as text",
}
HELP = ("-h", "--help", "help")
EXIT_USER_ERROR = 2


def main() -> None:
    """List the commands, print the version, or run a command with the rest of the command line."""
    name, *rest = sys.argv[1:] or ["--help"]
    if name in COMMANDS:
        _run(name, rest)
        return
    streams.guard("memlab")
    if name in HELP:
        print(listing())
    elif name == "--version":
        print(f"memlab {__version__}")
    else:
        _unknown(name)
    streams.release()


def listing() -> str:
    """All commands, one per line."""
    widest = max(map(len, COMMANDS))
    lines = [f"  {name:{widest}}  {what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            f"memlab {__version__} compares memory architectures of Transformers.",
            "",
            "usage: memlab COMMAND [KEY=VALUE ...]",
            "",
            *lines,
            "",
            "memlab COMMAND --help lists the keys of a command. Without installing: python -m memlab.COMMAND",
        ]
    )


def _run(name: str, rest: list[str]) -> None:
    command = importlib.import_module(f"memlab.{name}")
    # as `python -m memlab.COMMAND` sets it; argparse takes the program's name from the first
    sys.argv = [str(Path(command.__file__ or name)), *rest]
    command.main()


def _unknown(name: str) -> NoReturn:
    print(
        f"memlab: error: no command is named {name!r}.{suggestion(name, COMMANDS)} There are: "
        f"{', '.join(COMMANDS)}",
        file=sys.stderr,
    )
    sys.exit(EXIT_USER_ERROR)


if __name__ == "__main__":
    main()
