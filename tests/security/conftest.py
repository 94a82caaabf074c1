"""Fixtures of the tests of what strangers write."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mistakes.conftest import start
from tests.security.strangers import CANARY, OTHER, write_code

__all__ = ["start"]


@pytest.fixture(autouse=True)
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that is there as soon as anything of a stranger's has run; the test fails then."""
    (tmp_path / "code").mkdir()
    write_code(tmp_path / "code", tmp_path / CANARY)
    monkeypatch.syspath_prepend(str(tmp_path / "code"))
    monkeypatch.setenv("OF_STRANGERS_TEST", "a secret")
    yield tmp_path / CANARY
    imported = [name for name in sys.modules if name.partition(".")[0] in ("evil_of_strangers", OTHER)]
    for name in imported:  # by a test that allows it, or one that failed
        del sys.modules[name]
