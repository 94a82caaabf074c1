"""The figures of a sweep: all that its trials allow, and the best trials are the ones that are seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from memlab.sweeping import figures
from memlab.sweeping.study import Arm
from tests.sweeping import sweeps


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_two_objectives_and_the_darkest_lines_are_the_best(tmp_path: Path) -> None:
    import matplotlib.axes
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(
        directions=["maximize", "minimize"], sampler=optuna.samplers.RandomSampler(seed=0)
    )
    for number in range(4):
        trial = study.ask()
        trial.suggest_float("optim.lr", 1e-4, 1e-1, log=True)
        study.tell(trial, [number / 4, 100.0 * number])
    objectives = [
        {"metric": "val/score", "direction": "maximize"},
        {"metric": "memory/state_bytes", "direction": "minimize"},
    ]
    drawn = figures.draw(sweeps.spec(objectives=objectives), [Arm(None, study)], tmp_path)
    names = [
        f"{name}_{metric}"
        for metric in ("val_score", "memory_state_bytes")
        for name in ("history", "importance", "parallel_coordinates")
    ]
    assert drawn == [f"{name}.png" for name in [*names, "pareto_front"]]
    assert all((tmp_path / name).stat().st_size > 5000 for name in drawn)

    for at, colours in enumerate(("Blues", "Blues_r")):  # Blues is dark where values are high
        plot = figures._parallel_coordinates(objectives[at]["direction"])
        axes = plot(study, target=lambda trial, at=at: trial.values[at], target_name="x")
        assert isinstance(axes, matplotlib.axes.Axes)
        assert [lines.get_cmap().name for lines in axes.collections] == [colours]
        matplotlib.pyplot.close("all")
