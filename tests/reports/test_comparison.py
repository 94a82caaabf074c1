"""Runs are sorted into tables and groups, counted by hand, and those that cannot take part are named with
the reason.
"""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path

import pytest

from memlab.reports.comparison import tables
from memlab.reports.comparison.groups import Comparison
from memlab.reports.comparison.runs import sort
from memlab.tracking.stored_runs import LeftOut, StoredRun, below, from_directory
from tests.reports.runs import run, text_run


def compared(place: Path) -> Comparison:
    return sort("a name", "a command", [from_directory(directory) for directory in below(place)])


def test_groups_over_seeds_by_hand(tmp_path: Path) -> None:
    for seed, (rmt, plain) in enumerate([(1.0, 0.1), (0.99, 0.12), (0.95, 0.11)]):
        run(tmp_path / f"rmt{seed}", "rmt", seed, rmt)
        run(tmp_path / f"plain{seed}", "transformer", seed, plain)
    (table,) = compared(tmp_path).tables
    assert table.title == "copy, length=12, num_segments=4" and table.chance == 0.1
    best, worst = table.groups
    assert (best.label, worst.label) == ("rmt", "transformer"), "the best mean first; threads are no setting"
    assert best.scores.mean == pytest.approx(2.94 / 3)
    assert best.scores.std == pytest.approx(math.sqrt((0.02**2 + 0.01**2 + 0.03**2) / 2))
    assert (best.solve_rate, worst.solve_rate) == ("2/3", "0/3")
    assert table.front == ["transformer", "rmt"], "one carries nothing, the other is better"
    (pair,) = table.pairs
    assert pair.p == pair.adjusted == pair.possible == pytest.approx(0.1) and not pair.significant
    assert pair.difference == pytest.approx(2.94 / 3 - 0.11)
    assert (
        "is not significant" in table.verdict
        and "smallest p they can give is 0.1" in table.verdict
        and "4 seeds" in table.verdict
    )
    row = dict(zip(tables.columns(table), tables.cells(table, best), strict=True))
    assert (
        row["accuracy"] == "0.9800"
        and row["each seed"] == "1.0000 0.9900 0.9500"
        and row["n"] == "3"
        and row["seconds"] == "20"
    )
    assert row["state"] == "3.0 KiB" and row["carried"] == "18.0 ×"


def test_a_winner_needs_seeds(tmp_path: Path) -> None:
    for seed in range(4):
        run(tmp_path / f"rmt{seed}", "rmt", seed, 0.9 + seed / 100)
        run(tmp_path / f"plain{seed}", "transformer", seed, 0.1 + seed / 100)
    (table,) = compared(tmp_path).tables
    assert table.pairs[0].p == pytest.approx(2 / 70) and table.pairs[0].significant
    assert "It is better than transformer" in table.verdict and "not significant" not in table.verdict


def test_a_saturated_validation_is_said_everywhere(tmp_path: Path) -> None:
    found = {"since_step": 400, "validations": 3}
    for seed in range(2):
        run(tmp_path / f"rmt{seed}", "rmt", seed, 1.0)
        run(tmp_path / f"plain{seed}", "transformer", seed, 0.1)
    result = tmp_path / "rmt0" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"saturated": found}))
    comparison = compared(tmp_path)
    (note,) = comparison.tables[0].notes
    assert "saturated" in note and "rmt (1 of 2)" in note and "transformer" not in note
    assert note in tables.to_markdown(comparison)
    (row, other) = csv.DictReader(io.StringIO(tables.groups_csv(comparison)))
    assert (row["saturated"], other["saturated"]) == ("1", "0")


def test_groups_are_called_by_what_differs(tmp_path: Path) -> None:
    run(tmp_path / "a", "infini", 0, 0.9)
    run(tmp_path / "b", "infini", 0, 0.1, model__memory="off")
    run(tmp_path / "c", "rmt", 0, 0.8, model__memory="off")
    run(tmp_path / "d", "infini", 0, 0.7, optim__lr=2e-3)
    run(tmp_path / "e", "infini", 0, 0.6, task__num_segments=6)
    few, many = compared(tmp_path).tables
    labels = [
        "infini, memory=on, lr=0.001",
        "rmt",
        "infini, memory=on, lr=0.002",
        "infini, memory=off, lr=0.001",
    ]
    assert [group.label for group in few.groups] == labels
    assert (few.title, many.title) == ("copy, length=12, num_segments=4", "copy, length=12, num_segments=6")
    assert [group.label for group in many.groups] == ["infini"]
    assert "nothing to compare" in many.verdict
    assert few.groups[2].differs == ("lr=0.002, others 0.001",)


def test_runs_of_two_versions_are_groups_of_their_own(tmp_path: Path) -> None:
    """What 0.2 says of a model and 0.1 did not is no difference between them, but the version is."""
    run(tmp_path / "a", "rmt", 0, 0.9)
    run(tmp_path / "b", "rmt", 0, 0.8, optim__lr=2e-3)
    of_0_2 = {"model__backbone": "small", "model__layer_memory": "attention", "model__tokens": "rmt"}
    run(tmp_path / "c", "rmt", 0, 0.7, **of_0_2)
    run(tmp_path / "d", "rmt", 0, 0.6, **{**of_0_2, "model__backbone": "llama"})
    run(tmp_path / "e", "infini", 0, 0.5)
    (table,) = compared(tmp_path).tables
    assert [group.label for group in table.groups] == [
        "rmt (memlab 0.1), lr=0.001",
        "rmt (memlab 0.1), lr=0.002",
        "rmt, backbone=small, lr=0.001",
        "rmt, backbone=llama, lr=0.001",
        "infini",
    ]


def test_runs_from_before_a_key_was_there(tmp_path: Path) -> None:
    """A key that older runs lack is no difference while it has its default, or none."""
    run(tmp_path / "old", "rmt", 0, 0.5)
    run(
        tmp_path / "new",
        "rmt",
        1,
        0.6,
        trainer__recompute="none",
        curriculum__by="task",
        curriculum__sizes=None,
    )
    run(tmp_path / "other", "rmt", 1, 0.6, curriculum__by="length")
    (table,) = compared(tmp_path).tables
    assert {group.label: group.scores.n for group in table.groups} == {"rmt, by=task": 2, "rmt, by=length": 1}


def test_other_budgets_and_sizes_are_said(tmp_path: Path) -> None:
    for model in ("rmt", "infini", "transformer"):
        run(tmp_path / model, model, 0, 0.5)
    run(tmp_path / "short", "transformer_xl", 0, 0.4, trainer__max_steps=300, task__batch_size=64)
    large = json.loads((tmp_path / "rmt" / "result.json").read_text()) | {"parameters": 180_000}
    (tmp_path / "rmt" / "result.json").write_text(json.dumps(large))
    (table,) = compared(tmp_path).tables
    differs = {group.label: group.differs for group in table.groups}
    assert differs == {
        "rmt": ("+20% parameters",),
        "infini": (),
        "transformer": (),
        "transformer_xl": ("batch_size=64, others 32", "max_steps=300, others 600"),
    }
    shown = tables.to_markdown(compared(tmp_path))
    assert "not as the others" in shown and "max_steps=300, others 600" in shown


def test_who_takes_no_part(tmp_path: Path) -> None:
    run(tmp_path / "good", "rmt", 0, 1.0, ended=2000)
    run(tmp_path / "older", "rmt", 0, 0.5, ended=1000)
    (run(tmp_path / "unfinished", "rmt", 1, 0.5) / "result.json").unlink()
    (run(tmp_path / "damaged", "rmt", 2, 0.5) / "result.json").write_text('{"metr')
    (run(tmp_path / "version", "rmt", 3, 0.5) / "result.json").write_text('{"accuracy": 1.0}')
    (run(tmp_path / "nan", "rmt", 4, 0.5) / "result.json").write_text(
        '{"metrics": {"test/accuracy": NaN}, "memory": {}, "timing": {}, "steps": 1}'
    )
    (run(tmp_path / "yaml", "rmt", 5, 0.5) / "config.yaml").write_text("just words")
    found = compared(tmp_path)
    (table,) = found.tables
    assert [r.name for r in table.groups[0].runs] == [str(tmp_path / "good")]
    reasons = {Path(lost.name).name: lost.reason for lost in found.left_out}
    assert reasons.keys() == {"older", "unfinished", "damaged", "version", "nan", "yaml"}
    for name, said in {
        "older": "same configuration and seed",
        "unfinished": "no result.json",
        "damaged": "damaged result.json",
        "version": "another version",
        "nan": "no number",
        "yaml": "damaged config.yaml",
    }.items():
        assert said in reasons[name]
    assert all(lost.reason in tables.to_markdown(found) for lost in found.left_out)


def test_a_failed_seed_is_not_solved(tmp_path: Path) -> None:
    good = from_directory(run(tmp_path / "good", "rmt", 0, 1.0))
    assert isinstance(good, StoredRun)
    lost = LeftOut("lost", "failed", failed=True, config={**good.config, "seed": 1})
    again = LeftOut("again", "failed", failed=True, config={**good.config, "seed": 0})
    (table,) = sort("a", "b", [good, lost, again]).tables
    assert table.groups[0].solve_rate == "1/2" and table.groups[0].scores.n == 1
    assert "1 (+1 failed)" in tables.cells(table, table.groups[0]), "seed 0 failed once and finished then"


def test_text_is_compared_seed_by_seed(tmp_path: Path) -> None:
    """Every seed improves by the same, which groups alone would not show."""
    for seed, bits in enumerate([2.6, 2.5, 2.4, 2.3, 2.2, 2.1]):
        text_run(tmp_path / f"t{seed}", "transformer", seed, bits)
        text_run(tmp_path / f"x{seed}", "transformer_xl", seed, bits - 0.05, task__segment_length=32)
    (table,) = compared(tmp_path).tables
    assert table.title == "pg19" and table.metric == "bits_per_byte" and not table.higher_is_better
    assert [g.label for g in table.groups] == ["transformer_xl", "transformer"], "fewer bits are better"
    assert table.pairs[0].p == pytest.approx(2 / 64) and table.pairs[0].significant
    assert "solved" not in tables.columns(table) and "by seed" in table.verdict


def test_csv_has_every_run(tmp_path: Path) -> None:
    run(tmp_path / "a", "rmt", 0, 0.123456789)
    (run(tmp_path / "b", "rmt", 1, 0.5) / "result.json").unlink()
    found = compared(tmp_path)
    rows = list(csv.DictReader(io.StringIO(tables.runs_csv(found))))
    assert [(r["run"], r["score"], bool(r["left_out"])) for r in rows] == [
        (str(tmp_path / "a"), "0.123456789", False),
        (str(tmp_path / "b"), "", True),
    ]
    (group,) = csv.DictReader(io.StringIO(tables.groups_csv(found)))
    assert float(group["mean"]) == 0.123456789 and group["std"] == "" and group["on_pareto_front"] == "True"


def test_runs_that_read_other_text_are_named(tmp_path: Path) -> None:
    """By content: neither the place, the time nor the name of a file matters."""

    def read(name: str, model: str, seed: int, content: str | None, tokenizer: str | None = None) -> None:
        place = text_run(tmp_path / name, model, seed, 2.0 + seed / 10)
        files = {f"/{name}/train.txt": [5, str(seed), content], f"/{name}/test.txt": [3, "1", None]}
        record = {"files": files, "revision": None, "tokenizer": tokenizer}
        (place / "data.json").write_text(json.dumps(record))

    for seed in range(2):
        read(f"a{seed}", "rmt", seed, "one hash")
        read(f"b{seed}", "infini", seed, "another hash" if seed else "one hash")
    read("c", "transformer", 0, "one hash", "of a tokenizer")
    text_run(tmp_path / "d", "transformer_xl", 0, 2.5)
    (table,) = compared(tmp_path).tables
    said = {group.label: group.differs for group in table.groups}
    assert said == {
        "rmt": (),
        "infini": ("its seeds read different text or use different tokenizers",),
        "transformer": ("reads other text than most, or uses another tokenizer",),
        "transformer_xl": (),  # it is not known what it read
    }
    assert "not as the others" in tables.columns(table)
    (tmp_path / "c" / "data.json").write_text("[]")
    assert "transformer" not in {g.label for g in compared(tmp_path).tables[0].groups if g.differs}
