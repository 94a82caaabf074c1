"""The figure of the gates: which heads are counted as what, and that it is drawn from what was logged."""

from __future__ import annotations

from pathlib import Path

from memlab.reports import gates


def test_kinds_of_heads() -> None:
    assert gates.kinds([0.0, 0.1, 0.11, 0.4, 0.5, 0.6, 0.7, 0.9, 1.0]) == {
        "local": 2,
        "memory": 2,
        "mixer": 3,
        "between": 2,
    }
    said = gates.caption([0.02, 0.95, 0.97, 0.5, 0.3])
    assert (
        "of 5 heads: 3 specialised (1 local, gate ≤ 0.1; 2 memory, ≥ 0.9), 1 mixer (0.4 to 0.6), 1 between"
        in said
    )


def test_drawn_from_the_log(tmp_path: Path) -> None:
    steps = [
        {"step": s, "train/loss": 1.0, "gate/layer2_head1": 0.1 * s, "gate/layer2_head2": 0.5} for s in (1, 2)
    ]
    steps.append({"step": 2, "val/loss": 1.0})
    assert gates.over_training(steps) == {(2, 1): [(1, 0.1), (2, 0.2)], (2, 2): [(1, 0.5), (2, 0.5)]}
    assert gates.draw(steps, "title", tmp_path) and (tmp_path / "gates.png").stat().st_size > 5000
    assert (
        not gates.draw([{"step": 1, "train/loss": 1.0}], "title", tmp_path / "none")
        and not (tmp_path / "none").exists()
    )
