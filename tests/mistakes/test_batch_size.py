"""Batches and steps that cannot fit into memory are refused before they are made."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from memlab import ram
from memlab.config import cli
from memlab.config.checks import check, check_show
from memlab.errors import UserError
from memlab.training import build as build_module
from tests.mistakes.small_text import message
from tests.training import resuming

LARGE = [
    ["task=text", "task.batch_size=1000000000"],
    ["task=text", "task.segment_length=1000000000000"],
    ["task=text", "task.num_segments=1000000000000"],
    ["task=enwik8", "task.batch_size=1000000000"],
    ["task=copy", "task.batch_size=1000000000"],
    ["task=associative_retrieval", "task.batch_size=10000000000"],
    ["task=memorize_fact", "task.batch_size=10000000000"],
    ["task=passkey", "task.batch_size=1000000000"],
]


@pytest.mark.parametrize("command_line", LARGE)
def test_a_batch_that_cannot_fit_is_refused_before_it_is_made(
    command_line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ram, "available", lambda: 8 << 30)
    commands: dict[str, Callable[[Any], Any]] = {"train": check, "show": check_show}
    for command, checked in commands.items():
        found = message(functools.partial(cli.compose_checked, command, command_line, checked))
        assert re.match(
            r"task\.batch_size=\d+: a batch of [\d,]+ x [\d,]+ tokens needs at least [\d,.]+ [GT]iB of "
            r"memory, and 8\.0 GiB are free; use fewer rows, or shorter ones$",
            found,
        )
    monkeypatch.setattr(ram, "available", lambda: None)  # another system
    cli.compose_checked("train", command_line[:1], check)


def test_what_the_machine_has_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setattr(ram, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(ram, "_LIMITS", (tmp_path / "max", tmp_path / "gone"))
    (tmp_path / "max").write_text("max\n")
    assert ram.available() == 2 << 20
    (tmp_path / "max").write_text("4096\n")
    assert ram.available() == 4096
    monkeypatch.setattr(ram, "_MEMINFO", tmp_path / "gone")
    monkeypatch.setattr(ram, "_LIMITS", ())
    assert ram.available() is None
    ram.check(1 << 60, "anything", "")
    with pytest.raises(
        UserError, match=r"^x needs at least 1\.0 GiB of memory, and 0\.5 GiB are free; do y$"
    ):
        ram.check(1 << 30, "x", "do y", 1 << 29)
    ram.check(1 << 20, "x", "do y", 0)  # less than that is never asked for


def test_a_step_that_cannot_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = resuming.config(tmp_path, "task.batch_size=200000", "model.width=64")
    monkeypatch.setattr(ram, "available", lambda: 2 << 30)
    found = message(functools.partial(build_module.build, config))
    assert re.fullmatch(
        r"task\.batch_size=200000: a training step needs at least 5\.1 GiB of memory, and 2\.0 GiB are "
        r"free; use fewer rows, shorter segments, trainer\.accumulate, or a shorter model\.bptt_depth",
        found,
    )
    build_module.build(
        resuming.config(tmp_path, "task.batch_size=200000", "model.width=64", "model.bptt_depth=0")
    )
