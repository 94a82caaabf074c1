"""Imports run downward only: a room of memlab/ imports rooms below it, and none beside or above it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "memlab"
# From the top down; rooms of one line do not know each other. Every other file of memlab/ itself is a
# command: it stands above all of these.
FLOORS = (
    ("__init__",),
    ("api",),
    ("benchmarks",),
    ("training", "sweeping"),
    ("reports",),
    ("evaluation",),
    ("tracking",),
    ("config",),
    ("models", "tasks"),
    ("memories", "memory_tokens", "text"),
    ("policies",),
    ("layers",),
    ("ops",),
    ("files", "processors", "ram", "terminal"),
    ("errors", "bounds", "precision", "splits", "version"),
)
FLOOR = {room: -number for number, rooms in enumerate(FLOORS) for room in rooms}
COMMANDS = 1


def floor(room: str) -> int:
    return FLOOR.get(room, COMMANDS)


def imports(file: Path) -> Iterator[str]:
    """Rooms that a file imports, at any place in it, but its own."""
    own = room_of(file)
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in names:
            package, _, rest = name.partition(".")
            room = rest.partition(".")[0] or "__init__"
            if room == "__version__":
                room = "version"  # the package only hands it on
            if package == "memlab" and room != own:
                yield room


def room_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def test_every_room_has_a_floor() -> None:
    folders = {place.parent.name for place in PACKAGE.glob("*/__init__.py")}
    assert folders <= FLOOR.keys()
    assert FLOOR.keys() == {
        room for room in FLOOR if (PACKAGE / room).is_dir() or (PACKAGE / f"{room}.py").exists()
    }


@pytest.mark.parametrize("room", sorted({room_of(file) for file in PACKAGE.rglob("*.py")}))
def test_imports_run_downward(room: str) -> None:
    place = PACKAGE / room if (PACKAGE / room).is_dir() else PACKAGE / f"{room}.py"
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    upward = {
        f"{file.relative_to(PACKAGE)} imports {imported}"
        for file in files
        for imported in imports(file)
        if floor(imported) >= floor(room)
    }
    assert not upward
