"""Fixtures of the tests of mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mistakes.starting import Start


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Start:
    """Starts commands in an empty directory."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return Start(tmp_path, monkeypatch, capsys)
