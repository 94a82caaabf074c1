"""`evaluation.json`: another key is another entry, and nothing is lost,
whatever happens to the process that writes.
"""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from memlab.errors import UserError
from memlab.evaluation import record
from memlab.evaluation.record import Record, best


def entry(
    segments: int, samples: int = 8, step: int = 5, checkpoint: str = "best.ckpt", **more: Any
) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint,
        "step": step,
        "segments": segments,
        "length": 3 * segments,
        "samples": samples,
        **more,
    }


def test_entries_are_kept_by_key(tmp_path: Path) -> None:
    of = Record(tmp_path, {"run": "here", "model": "rmt"})
    for new in (
        entry(4),
        entry(2, accuracy=0.5),
        entry(2, samples=9),
        entry(2, step=6),
        entry(2, checkpoint="last.ckpt"),
    ):
        assert of.add("lengths", new)["finished"]
    assert [(e["segments"], e["samples"]) for e in of.whole()["lengths"]] == [
        (2, 8),
        (2, 8),
        (2, 8),
        (2, 9),
        (4, 8),
    ]
    again = of.add("lengths", entry(2, accuracy=0.75))
    assert again["accuracy"] == 0.75 and len(of.whole()["lengths"]) == 5
    found = Record(tmp_path, {"run": "here", "model": "rmt"}).find("lengths", **entry(2))
    assert found == again
    assert of.find("lengths", **entry(2, samples=10)) is None and of.find("lengths", **entry(8)) is None
    assert json.loads((tmp_path / "evaluation.json").read_text()) == of.whole()
    assert of.whole()["format"] == record.FORMAT and of.whole()["streams"] == []


def test_several_processes_may_add(tmp_path: Path) -> None:
    ends = [
        threading.Thread(
            target=lambda n=n: [Record(tmp_path, {}).add("lengths", entry(10 * n + i)) for i in range(5)]
        )
        for n in range(4)
    ]
    for thread in ends:
        thread.start()
    for thread in ends:
        thread.join()
    assert len(Record(tmp_path, {}).whole()["lengths"]) == 20


def test_an_entry_that_cannot_be_written_leaves_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Record(tmp_path, {})
    of.add("lengths", entry(2))
    before = (tmp_path / "evaluation.json").read_bytes()

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "write_whole", full)
    with pytest.raises(UserError, match=r"evaluation\.json cannot be written: No space left"):
        of.add("lengths", entry(4))
    # what is not a number is a defect, and never in the file
    with pytest.raises(ValueError, match="not JSON compliant"):
        of.add("lengths", entry(4, loss=float("nan")))
    assert (tmp_path / "evaluation.json").read_bytes() == before


def test_a_broken_file_and_one_of_another_format_are_mistakes(tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot be read .* remove it"):
        Record(tmp_path, {})
    earlier = '{"format": 1, "lengths": [{"segments": 3}]}'
    (tmp_path / "evaluation.json").write_text(earlier)
    with pytest.raises(
        UserError, match=rf"has format 1, this memlab writes format {record.FORMAT}; move it away"
    ):
        Record(tmp_path, {}).add("lengths", entry(4))
    assert (tmp_path / "evaluation.json").read_text() == earlier


def test_a_curve_is_of_one_checkpoint_and_the_most_samples() -> None:
    entries = [
        entry(4, 8),
        entry(4, 16),
        entry(2, 8, step=4),
        entry(8, 8),
        entry(8, 99, step=4),
        entry(2, 99, checkpoint="last.ckpt"),
    ]
    assert [(e["segments"], e["samples"], e["step"]) for e in best(entries)] == [(4, 16, 5), (8, 8, 5)]
    assert best([entry(2, checkpoint="mine.ckpt")]) == [] == best([])
