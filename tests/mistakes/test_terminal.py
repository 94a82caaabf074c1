"""Where output goes: narrow terminals, pipes, full disks, terminals that lack characters."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich import box
from rich.console import Console
from rich.table import Table

from memlab.benchmarks import report
from memlab.config import cli
from memlab.config.unexpected import NAME, UnexpectedError, kept_in
from memlab.errors import ConfigError
from memlab.evaluation.progress import Meter
from memlab.reports import summary
from memlab.reports.evaluation import tables as evaluation
from memlab.sweeping import conclusion
from memlab.terminal import streams, tables

# --- tables

FIGURES = ["12.1934–12.2012", "1,048,576", "0.9987 ± 0.0004", "2.19–2.41", "114.00 ×", "nothing"]
NAME_OF_ONE = "infini_delta_over_transformer_xl"


def wide(columns: int = 9, boxed: bool = True, names: int = 1) -> Table:
    table = Table(title="what it is, in many words " * 6, caption="how it was measured, in many words " * 6)
    if not boxed:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False)
    for at in range(names):
        table.add_column(f"model {at}")
    for at in range(columns):
        table.add_column(f"figure {at}", justify="right")
    for row in range(3):
        figures = [FIGURES[(row + at) % len(FIGURES)] for at in range(columns)]
        table.add_row(*[f"{NAME_OF_ONE}_{at}" for at in range(names)], *figures, end_section=row == 1)
    return table


def lines(table: Table, width: int, names: int = 1) -> list[str]:
    out = io.StringIO()
    tables.show(Console(file=out, width=width, highlight=False), table, names)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [40, 60, 80, 120])
@pytest.mark.parametrize("boxed", [True, False])
@pytest.mark.parametrize("names", [1, 2])
def test_no_figure_is_cut_on_a_narrow_terminal(width: int, boxed: bool, names: int) -> None:
    table = wide(boxed=boxed, names=1 if width < 80 else names)
    shown = lines(table, width, names=1 if width < 80 else names)
    text = "\n".join(shown)
    assert "…" not in text
    for column in table.columns[names:]:
        for cell in column._cells:
            assert str(cell) in text, cell
    body = [line for line in shown if "many words" not in line]
    assert max(map(len, body)) <= width


@pytest.mark.parametrize("boxed", [True, False])
def test_a_table_that_fits_is_one(boxed: bool) -> None:
    assert len(tables.parts(wide(2, boxed), 80)) == 1
    assert len(tables.parts(wide(9, boxed), 80)) > 1
    assert len(tables.parts(wide(9, boxed), 1000)) == 1


def test_a_pipe_gets_the_whole_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    tables.show(tables.console(), wide())
    shown = capsys.readouterr().out.splitlines()
    assert sum(NAME_OF_ONE in line for line in shown) == 3, "a line for each row"
    assert all(any(figure in line for line in shown) for figure in FIGURES)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """The consoles of all reports have 80 columns; returns what was printed."""
    out = io.StringIO()
    console = Console(file=out, width=80, highlight=False)
    monkeypatch.setattr(tables, "console", lambda stderr=False: console)
    return out.getvalue


def whole(text: str, *figures: str) -> None:
    """Whether a table is there with all of these."""
    assert "…" not in text
    assert max(len(line) for line in text.splitlines() if line[:1] in "│┃┏└ ") <= 80
    for figure in figures:
        assert figure in text, (figure, text)


def test_the_summary_of_a_training(narrow: Callable[[], str]) -> None:
    memory = {"state_bytes": 123_456_789, "tokens": 2_043_904, "kv_full_bytes": 987_654_321_000}
    result = {
        "model": NAME_OF_ONE,
        "task": "associative_retrieval",
        "seed": 4_294_967_295,
        "metrics": {
            "val/accuracy": 0.98765,
            "test/accuracy": 0.98765,
            "test/accuracy_teacher_forced": 0.9,
            "test/exact_match": 0.8,
        },
        "memory": {**memory, "compression_carry": 123456.78, "compression_peak": 1.5},
        "timing": {"train_seconds": 123456.0, "tokens_per_second": 1234567.0, "step_seconds": 12.3456},
        "steps": 1_000_000,
        "samples": 32_000_000,
        "tokens_read": 999_999_999,
        "stages_began_at": list(range(0, 100_000, 9_999)),
        "best_step": 999_950,
        "best_stage": 10,
        "stages": 11,
        "chance": 0.1,
        "parameters": 12_345_678_901,
    }
    summary.print_summary(result, Path("run"), None)
    whole(narrow(), "0.9877", "12,345,678,901", "123456.78 ×", "117.7 MiB", "919.8 GiB", "1,234,567")


def test_the_tables_of_an_evaluation(narrow: Callable[[], str]) -> None:
    entry: dict[str, Any] = {
        "segments": 16_384,
        "samples": 4_096,
        "accuracy": 0.98765,
        "accuracy_teacher_forced": 0.91,
        "exact_match": 0.82,
        "intervals": {"accuracy": [0.98123, 0.99234]},
        "controls": {"memory_off": {"accuracy": 0.1011}, "shuffled": {"accuracy": 0.1022}},
        "memory": {"compression_carry": 123456.78, "compression_peak": 23456.78, "state_bytes": 123_456_789},
        "tokens": 2_043_904,
        "tokens_per_second": 1_234_567.0,
        "peak_memory": {"bytes": 1_234_567_890},
        "depth": [{"from": 0.0, "to": 0.5, "accuracy": 0.987, "samples": 2_048, "interval": [0.9, 1.0]}],
    }
    record = {
        "model": NAME_OF_ONE,
        "task": "associative_retrieval",
        "seed": 0,
        "trained_segments": 8,
        "lengths_in": "segments",
        "score": "accuracy",
        "chance": 0.1,
        "cost": {"parameters": 1_234_567, "flops_per_token": {"inference": 2e9, "training": 6e9}},
    }
    entries = [{**entry, "segments": 2**n} for n in range(10)]
    evaluation.print_lengths(tables.console(), record, entries, 8_192)
    figures = (
        "0.9877",
        "0.981–0.992",
        "0.1011",
        "0.1022",
        "123456.78 ×",
        "23456.78 ×",
        "1,234,567",
        "1.1 GiB",
    )
    whole(narrow(), *figures, "0.987 (2,048)")


def test_the_result_of_a_sweep(narrow: Callable[[], str]) -> None:
    numbers = {"mean": 0.98765, "deviation": 0.01234, "values": [0.98, 0.99]}
    own = {"metrics": {"val/score": numbers, "test/accuracy": numbers}, "seeds": [1001, 1002, 1003]}
    best = {
        "trial": 123,
        "parameters": {"optim.betas": [0.9, 0.98], "layer_memory": NAME_OF_ONE, "optim.lr": 0.00123456},
        "values": {"val/score": 0.98765},
    }
    trials = {"complete": 10, "pruned": 3, "failed": 1}
    result = {
        "study": "mine",
        "trials": trials,
        "best": best,
        "seeds": [0],
        "final": own,
        "final_default": own,
    }
    conclusion.show(result, Path("out"), folder="my models")
    text = narrow()
    whole(text, "[0.9, 0.98]", "0.9877 ± 0.0123", "0.001235", "0.98765")
    assert "python -m memlab.train --config-dir 'my models' experiment_file=out/best.yaml" in text


def test_the_table_of_a_benchmark(narrow: Callable[[], str], tmp_path: Path) -> None:
    spread = report.with_range({"median": 2.31, "min": 2.19, "max": 2.41})
    head = ["model", "segments", "theirs / ours", "ms", "tokens/s", "theirs, ms", "memory", "ours"]
    body = [[NAME_OF_ONE, "16 x 256", spread, spread, "1,234,567", spread, "123.4 MiB", spread]]
    table = report.terminal_table("title", head, body, "caption")
    report.write({"suite": "x"}, table, str(tmp_path))
    whole(narrow(), "2.31 (2.19–2.41)", "1,234,567", "123.4 MiB")


# --- streams


class Full(io.StringIO):
    """A file on a full disk, or a pipe that was closed."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        raise io.UnsupportedOperation


BROKEN = {
    "full": (OSError(28, "No space left on device"), 2, "No space left on device"),
    "closed": (BrokenPipeError(32, "Broken pipe"), 141, None),
    "gone": (OSError(5, "Input/output error"), 2, "Input/output error"),
}


@pytest.mark.parametrize("how", BROKEN)
def test_standard_output_that_cannot_be_written(
    how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error, status, said = BROKEN[how]
    monkeypatch.setattr(sys, "stdout", Full(error))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    streams.guard("memlab.show")
    with pytest.raises(SystemExit) as ended:
        print("a table")
    assert ended.value.code == status
    told = capsys.readouterr().err
    assert told == (f"memlab.show: error: standard output cannot be written: {said}\n" if said else "")


@pytest.mark.parametrize("how", BROKEN)
def test_standard_error_that_cannot_be_written_stops_nothing(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stderr", Full(BROKEN[how][0]))
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    streams.guard("memlab.train")
    print("step 1", file=sys.stderr, flush=True)
    tables.show(tables.console(stderr=True), wide())


def test_closed_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    streams.guard("memlab.show")
    print("nothing")
    streams.release()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_a_terminal_that_lacks_characters(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bytes_ = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(bytes_, encoding=encoding))
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    streams.guard("memlab.train")
    tables.show(tables.console(), wide())
    print("3 × 0.5 ± 0.1 – … → 文 \udcff")
    streams.release()
    shown = bytes_.getvalue().decode(encoding)
    if encoding == "ascii":
        assert shown.splitlines()[-1] == r"3 x 0.5 +- 0.1 - ... -> \u6587 \udcff"
        assert "12.1934-12.2012" in shown and "114.00 x" in shown
    else:
        assert "114.00 ×" in shown and shown.rstrip().endswith(r"\udcff")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("line", ["show task=reverse samples=400 | head -1", "train --help > /dev/full"])
def test_real_pipes_and_disks(line: str, tmp_path: Path) -> None:
    program = f"set -o pipefail; {sys.executable} -m memlab.{line}"
    done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    told = done.stderr.splitlines()
    if "head" in line:
        assert (done.returncode, told) == (141, []) and done.stdout.startswith("reverse, train")
    else:
        error = "memlab.train: error: standard output cannot be written: No space left on device"
        assert (done.returncode, told) == (2, [error])


def test_words_that_the_locale_cannot_read(tmp_path: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0"}
    words = [sys.executable, "-m", "memlab.train", 'run_dir="ü"']
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.endswith(
        "is not readable in this locale (ascii); set PYTHONUTF8=1, or LC_ALL=C.UTF-8\n"
    )
    assert len(done.stderr.splitlines()) == 1


# --- bars


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_a_dumb_terminal_gets_lines(
    term: str, live: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", term)
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert Console(stderr=True).is_terminal
        assert tables.is_live(tables.console(stderr=True)) is live
        assert (Meter("reading", 10).bar is not None) is live
    os.close(master)


def test_a_file_gets_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert not tables.is_live(tables.console(stderr=True)) and Meter("reading", 10).bar is None


# --- what nobody expected


def test_an_unexpected_error_is_kept_in_the_run(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for number in (1, 2):
        with (
            pytest.raises(UnexpectedError) as caught,
            kept_in(None, tmp_path / "none", tmp_path / "run"),
        ):
            raise KeyError(f"mine {number}")
        log = tmp_path / "run" / NAME
        assert str(caught.value) == (
            f"KeyError: 'mine {number}'. This was not expected; the traceback is in {log}"
        )
    text = log.read_text()
    assert text.count("Traceback (most recent call last)") == 2 and "KeyError: 'mine 1'" in text
    assert text.count("memlab 0.") == 2


def test_an_unexpected_error_without_a_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), kept_in(None, tmp_path / "none"):
        raise KeyError("mine")
    monkeypatch.setenv("MEMLAB_TRACEBACK", "1")
    with pytest.raises(KeyError), kept_in(tmp_path):
        raise KeyError("mine")
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_nothing_unexpected(tmp_path: Path) -> None:
    with pytest.raises(ConfigError), kept_in(tmp_path):
        raise ConfigError("x")
    assert list(tmp_path.iterdir()) == []


def test_one_line_says_where_the_traceback_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["memlab.generate", "run=here"])
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    (tmp_path / "here").mkdir()

    def job(config: Any) -> int:
        return json.loads("{")  # type: ignore[no-any-return]

    from memlab.evaluation.settings import check_generate

    with pytest.raises(SystemExit) as ended:
        cli.run("generate", check_generate, job, groups=False)
    assert ended.value.code == 1
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(
        "memlab.generate: error: JSONDecodeError: Expecting property"
    )
    assert told[0].endswith(f"This was not expected; the traceback is in {tmp_path / 'here' / NAME}")
