"""Names and texts of strangers are shown as text: on a terminal, in pages, tables and figures."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.table import Table

from memlab import api, generate
from memlab.config.unexpected import UnexpectedError, kept_in
from memlab.files import write_whole
from memlab.reports.comparison import page, tables
from memlab.reports.comparison.runs import sort
from memlab.reports.drawing import new_figure, save
from memlab.reports.evaluation import command
from memlab.terminal import tables as terminal
from memlab.terminal.plain import markdown, printable
from memlab.tracking.stored_runs import LeftOut, StoredRun
from tests.mistakes.starting import Start
from tests.security.strangers import run, set_keys

NASTY = 'x\x1b]0;title\x07\x1b[2J\x9b1m\u202e<img src=x onerror="alert(1)">|[a](http://b)![c](http://d)[/]'


def test_what_a_terminal_obeys_is_shown() -> None:
    assert printable("a\tb\nc é 漢 🙂 × −") == "a\tb\nc é 漢 🙂 × −"
    assert (
        printable("\x1b\x07\r\x00\x7f\x9b\u202e\u2028\ud800") == r"\x1b\x07\r\x00\x7f\x9b\u202e\u2028\ud800"
    )
    assert markdown("a|b<c>\n[d](e)![f](g)\x1b") == r"a\|b&lt;c> [d]\(e)![f]\(g)\x1b"


def test_a_console_obeys_only_its_own() -> None:
    out = io.StringIO()
    console = terminal.PlainConsole(file=out, force_terminal=True, color_system="standard", width=200)
    table = Table(title="t")
    table.add_column("[bold]a[/]")
    table.add_row("[red]b[/] \x1b[2J")
    terminal.show(console, table)
    console.print("[bold]c[/] \x1bPd", soft_wrap=True, highlight=False)
    shown = out.getvalue()
    assert "\x1b[31mb" in shown and "\x1b[1mc" in shown  # its own colours
    assert r"\x1b[2J" in shown and r"\x1bPd" in shown
    assert "\x1b[2J" not in shown and "\x1bP" not in shown
    assert isinstance(terminal.console(), terminal.PlainConsole) and isinstance(console, Console)


def stored(name: str, seed: int, **result: object) -> StoredRun:
    config = {
        "model.name": NASTY,
        "task.name": NASTY,
        "task.length": 4,
        "seed": seed,
        "model.backbone": "small",
    }
    metrics = {"test/accuracy": 0.5 + seed / 10}
    memory = {"state_bytes": 8, "compression_carry": 1.0, "compression_peak": 1.0}
    whole = {"metrics": metrics, "memory": memory, "timing": {"train_seconds": 1.0}, "steps": 1, **result}
    return StoredRun(name, config, whole, (), {}, 0.0)


def test_a_comparison_of_nasty_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    versions = {"versions": {NASTY: NASTY}, "command": NASTY, "commit": NASTY}
    runs = [stored(f"=1+1 {NASTY}", 0, **versions), stored("b", 1, hardware={"gpus": [NASTY]})]
    comparison = sort(NASTY, NASTY, [*runs, LeftOut(f"`{NASTY}", NASTY)])
    tables.to_terminal(comparison, terminal.console())
    html = page.write(comparison, tmp_path, "now").read_text()
    texts = {
        "terminal": capsys.readouterr().out,
        "page": html,
        "markdown": tables.to_markdown(comparison),
        "runs": tables.runs_csv(comparison),
        "groups": tables.groups_csv(comparison),
    }
    for where, text in texts.items():
        assert r"\x1b[2J\x9b1m\u202e" in text, where
        assert not set("\x1b\x07\x9b\u202e") & set(text), where
    assert "<img" not in html and "&lt;img" in html and 'onerror="' not in html
    table = texts["markdown"].partition("```\n")[2]
    assert "<img" not in table and "](http" not in table and r"\|[a]\(http://b)" in table
    assert "\n\"'=1+1 x" in texts["runs"] and "\n=1+1" not in texts["runs"]


def test_a_title_is_no_mathematics(tmp_path: Path) -> None:
    figure, (axes,) = new_figure(1)
    axes.set(title=r"$\frac{1$ on $x^$")
    figure.suptitle("$$")
    save(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size


@pytest.mark.parametrize("terminal_is_there", [True, False])
def test_generated_text_on_a_terminal(
    terminal_is_there: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A pipe or a file gets the text itself."""
    pieces = ["a", "\x1b]0;b", "\x07é\n"]
    opened = SimpleNamespace(write=lambda *_, **__: iter(pieces))
    monkeypatch.setattr(api, "load", lambda *_, **__: opened)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal_is_there, raising=False)
    store = SimpleNamespace(uri="")
    generate.job(
        SimpleNamespace(  # type: ignore[arg-type]
            run="", policy=None, threads=None, accelerator="cpu", tracking=store, trust=[], prompt="p\x1b",
            tokens=3, temperature=0.0, top_k=None, seed=0, untrained=None,
        )
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert shown == ("p\\x1ba\\x1b]0;b\\x07é\n\n" if terminal_is_there else "p\x1ba\x1b]0;b\x07é\n\n")


def test_a_file_is_not_written_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (tmp_path / "result.json.partial").symlink_to(mine)
    (tmp_path / "result.json").symlink_to(mine)
    write_whole(tmp_path / "result.json", "new")
    assert mine.read_text() == "mine" and (tmp_path / "result.json").read_text() == "new"
    (tmp_path / "error.log").symlink_to(mine)
    with pytest.raises(ZeroDivisionError), kept_in(tmp_path):
        raise ZeroDivisionError
    assert mine.read_text() == "mine"
    (tmp_path / "error.log").unlink()
    with pytest.raises(UnexpectedError), kept_in(tmp_path):
        raise ZeroDivisionError
    assert "ZeroDivisionError" in (tmp_path / "error.log").read_text()


@pytest.mark.parametrize("name", ["evaluation.json", "evaluation.json.lock", "figures", "figures/x.png"])
def test_an_evaluation_writes_to_its_run(name: str, whole: Path, start: Start) -> None:
    directory = run(whole, start.place / "run")
    (start.place / "mine").mkdir()
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).symlink_to(start.place / "mine")
    found = start.message("evaluate", "run=run", job=True)
    assert found.startswith(f"{directory / name} is a symbolic link, and memlab would write to what")
    assert os.listdir("mine") == []


def test_a_training_that_continues_writes_to_its_run(whole: Path, tmp_path: Path) -> None:
    from memlab.errors import UserError
    from memlab.tracking.run_directory import RunDirectory
    from tests.training import resuming

    directory = run(whole, tmp_path / "run")
    (directory / "metrics.jsonl").unlink()
    (directory / "metrics.jsonl").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match=r"metrics\.jsonl is a symbolic link"):
        RunDirectory(directory, resuming.config(directory), continues=True)


def test_figures_are_not_sent_to_a_server_that_only_the_run_names(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(command.finished_runs, "add", lambda uri, *_: asked.append(uri))
    from memlab.config.sections import MLflowTracking

    tracking = MLflowTracking(mlflow=True, uri="http://stranger.invalid", experiment="x")
    found = SimpleNamespace(best=True, by_id=False, directory=tmp_path)
    opened = SimpleNamespace(policy=None, config=SimpleNamespace(tracking=tracking), found=found)
    for mine in ("sqlite:///mlflow.db", "http://stranger.invalid"):
        config = SimpleNamespace(tracking=SimpleNamespace(uri=mine))
        command._track(config, opened, ())  # type: ignore[arg-type]
    assert asked == ["http://stranger.invalid"]
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1 and "the run names the server http://stranger.invalid" in said[0]


def test_a_record_of_files_is_shown_as_text(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from memlab.tracking import data_record

    directory = run(whole, tmp_path / "run", set_keys(seed=0))
    record = {"files": {"x\x1b[2J": [1, "2", None]}, "revision": None, "tokenizer": None}
    (directory / "data.json").write_text(json.dumps(record))
    data_record.warn(directory, {"files": {}, "revision": None, "tokenizer": None})
    shown = capsys.readouterr().err
    assert "warning" in shown and "\x1b" not in shown
