"""Which modules a file may name; the check itself runs nothing of them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from memlab.config import trust
from memlab.errors import ConfigError

MARK = "import pathlib\npathlib.Path(__file__).with_name('was_imported').touch()\n"
NAMES = ("alone_of_trust", "outer_of_trust", "outer_of_trust.inner", "outer_of_trust.inner.deep")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of the path, with modules that leave a mark where they are imported."""
    deep = tmp_path / "code" / "outer_of_trust" / "inner"
    deep.mkdir(parents=True)
    for file in (deep / "__init__.py", deep / "deep.py", deep.parent / "__init__.py"):
        file.write_text(MARK)
    (tmp_path / "code" / "alone_of_trust.py").write_text(MARK)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    return tmp_path / "code"


def refused(module: str) -> bool:
    try:
        trust.check("task._target_", f"{module}.Mine")
    except trust.NotAllowedError as error:
        assert f"trust=[{module}]" in str(error) and f"task._target_={module}.Mine" in str(error)
        return True
    return False


def installed(place: Path, value: str, group: str = "memlab.plugins") -> None:
    """A package with an entry point."""
    info = place / "of_trust-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: of_trust\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\nmine = {value}\n")


def test_nothing_but_memlab_is_allowed(place: Path) -> None:
    assert all(map(refused, NAMES)) and refused("os") and refused("memlab_of_others.tasks")
    assert not refused("memlab.tasks.copy") and not refused("memlab")


def test_a_module_is_allowed_with_what_lies_in_it(place: Path) -> None:
    with trust.allowing(["outer_of_trust.inner"]):
        assert [name for name in NAMES if not refused(name)] == list(NAMES[2:])
        with trust.allowing("alone_of_trust"):
            assert [name for name in NAMES if refused(name)] == ["outer_of_trust"]
        assert refused("alone_of_trust") and refused("outer_of_trust.inner_too")
    assert all(map(refused, NAMES))


@pytest.mark.parametrize("folder", [".", "configs"])
def test_a_folder_allows_the_modules_in_it_and_next_to_it(
    place: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)  # where modules of Python itself do not lie either
    (place / "configs" / "deeper").mkdir(parents=True)
    with trust.allowing(folder=place / folder):
        assert not any(map(refused, NAMES)) and refused("os") and refused("of_trust_not_there")
        assert refused("sys") and refused("subprocess") and refused("json.decoder")
    with trust.allowing(folder=place / "configs" / "deeper"):
        assert all(map(refused, NAMES))


def test_an_entry_point_allows_a_module(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(place, "outer_of_trust.inner")
    assert [name for name in NAMES if not refused(name)] == list(NAMES[2:])
    monkeypatch.chdir(place)  # `python -m` has the current directory on the path, whoever it is from
    assert all(map(refused, NAMES))


def test_an_entry_point_of_another_group_allows_nothing(place: Path) -> None:
    installed(place, "outer_of_trust", "console_scripts")
    assert all(map(refused, NAMES))


def test_typing_a_name_allows_its_package() -> None:
    words = ["task._target_=a.b.C", "+model.layer_memory=[d.E,attention,'f.g.H']", "model.tokens=i.J,k.L"]
    assert trust.typed(words) == {"a", "d", "f", "i", "k"}
    others = [
        "task.data_dir=m.n",
        "optim.lr=1e-3",
        "model=o",
        "task._target_=P",
        "trust=[q.r]",
        "--config-dir",
    ]
    assert trust.typed(others) == set()


@pytest.mark.parametrize(
    "target", ["Mine", "", "a/b.C", "../a.C", "a..C", ".a.C", "a.C()", "a.C\n", "a b.C", "1a.C"]
)
def test_what_is_no_name_of_a_class(target: str) -> None:
    with pytest.raises(ConfigError, match="is not a class in a module") as error:
        trust.check("task._target_", target)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "a/b", "../a", "a.", "a b", 3, None, "a\x1b"])
def test_what_is_no_name_of_a_module(name: object) -> None:
    with pytest.raises(ConfigError, match="is not the name of a module"):
        trust.module_names([name])  # type: ignore[list-item]


def test_a_source_is_found_without_importing_the_packages_it_lies_in(place: Path) -> None:
    inner = place / "outer_of_trust" / "inner"
    assert trust.source("outer_of_trust.inner.deep") == inner / "deep.py"
    assert trust.source("outer_of_trust.inner") == inner / "__init__.py"
    assert trust.source("alone_of_trust") == place / "alone_of_trust.py"
    (place / "plain_of_trust" / "folder").mkdir(parents=True)  # packages without __init__.py
    (place / "plain_of_trust" / "folder" / "module.py").touch()
    assert trust.source("plain_of_trust.folder.module") == place / "plain_of_trust" / "folder" / "module.py"
    absent = [
        "outer_of_trust.no",
        "alone_of_trust.no",
        "no_of_trust",
        "sys",
        "plain_of_trust",
        "",
        "a/b",
    ]
    assert [trust.source(name) for name in absent] == [None] * len(absent)


@pytest.fixture(autouse=True)
def nothing_ran(tmp_path: Path):  # type: ignore[no-untyped-def]
    yield
    assert not list(tmp_path.rglob("was_imported")) and not sys.modules.keys() & set(NAMES)
