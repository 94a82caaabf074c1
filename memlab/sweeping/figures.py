"""The figures of a sweep, drawn by Optuna: history, importance, parallel coordinates,
the course of the trials, and the Pareto front.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab.sweeping.spec import Spec

if TYPE_CHECKING:
    import optuna

    from memlab.sweeping.study import Arm


def load() -> None:
    """Import what `draw` needs, which takes seconds; a sweep does it while its first trials train."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot
    import optuna.importance
    import optuna.visualization.matplotlib._param_importances  # noqa: F401  # its modules are loaded when they are asked for


def draw(spec: Spec, arms: Sequence[Arm], directory: Path) -> list[str]:
    """Draw all figures that the trials allow; returns their names.

    One that cannot be drawn is reported in a line.
    """
    load()
    import matplotlib.pyplot as plt

    drawn = []
    directory.mkdir(parents=True, exist_ok=True)
    for arm in arms:
        suffix = "" if arm.value is None else f"_{arm.value}"
        for name, plot in _plots(spec, arm.study).items():
            file = directory / f"{name}{suffix}.png"
            with warnings.catch_warnings():
                # Optuna calls them experimental, and warns where trials lack a parameter
                warnings.simplefilter("ignore")
                try:
                    axes = plot()
                    figure = (axes.flat[0] if hasattr(axes, "flat") else axes).figure
                    figure.set_size_inches(9, 5)
                    figure.savefig(file, dpi=120, bbox_inches="tight")
                    drawn.append(file.name)
                except Exception as error:  # a sweep does not fail because of a figure
                    print(f"memlab: the figure {file.name} cannot be drawn: {error}", file=sys.stderr)
                finally:
                    plt.close("all")
    return drawn


def _plots(spec: Spec, study: optuna.Study) -> dict[str, Callable[[], Any]]:
    """What can be drawn of a study, by the names of the figures."""
    from optuna.visualization import matplotlib as optuna_figures

    complete = [t for t in study.get_trials(deepcopy=False) if t.state.name == "COMPLETE"]
    varied = [key for key in spec.space if len({str(t.params[key]) for t in complete if key in t.params}) > 1]
    names = [objective.metric for objective in spec.objectives]
    plots: dict[str, Callable[[], Any]] = {}

    def of(plot: Callable[..., Any], at: int, **more: Any) -> Callable[[], Any]:
        if len(names) > 1:
            more["target"] = lambda trial: trial.values[at]
        return lambda: plot(study, target_name=names[at], **more)

    for at, name in enumerate(names):
        part = "" if len(names) == 1 else "_" + name.replace("/", "_")
        plots[f"history{part}"] = of(optuna_figures.plot_optimization_history, at)
        if varied:
            plots[f"importance{part}"] = of(optuna_figures.plot_param_importances, at)
            plots[f"parallel_coordinates{part}"] = of(
                _parallel_coordinates(spec.objectives[at].direction), at
            )
    if len(names) == 1:
        plots["validations"] = lambda: optuna_figures.plot_intermediate_values(study)
    elif len(names) <= 3:
        plots["pareto_front"] = lambda: optuna_figures.plot_pareto_front(study, target_names=names)
    return plots


def _parallel_coordinates(direction: str) -> Callable[..., Any]:
    """Optuna's plot with the best lines the darkest; of several objectives it takes each for one that is
    minimized.
    """
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    def plot(study: optuna.Study, **more: Any) -> Any:
        axes = plot_parallel_coordinate(study, **more)
        for lines in axes.collections:
            lines.set_cmap("Blues" if direction == "maximize" else "Blues_r")
        return axes

    return plot
