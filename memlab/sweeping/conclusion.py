"""What a sweep produces: the best, `best.yaml`, its training with fresh seeds and a test, figures,
`trials.csv`, and `result.json`.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from memlab.config.override_file import word
from memlab.errors import UserError
from memlab.files import DamagedFileError, read_object, write_whole
from memlab.sweeping import figures, labels, space
from memlab.sweeping.ending import Asked
from memlab.sweeping.final import train_final
from memlab.sweeping.order import Order
from memlab.sweeping.plan import Plan
from memlab.sweeping.study import Arm
from memlab.sweeping.table import state

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def finished(plan: Plan, arms: Sequence[Arm]) -> dict[str, Any] | None:
    """The sweep's result, if there is nothing left to do."""
    file = plan.run_dir / "result.json"
    if not file.exists():
        return None
    try:
        result = read_object(file)
    except DamagedFileError:
        return None
    if result.get("trials_asked") != plan.trials or (
        plan.spec.final.seeds and result.get("final_seeds") != plan.spec.final.seeds
    ):
        return None
    return result if result.get("trials") == counts(arms) else None


def counts(arms: Sequence[Arm]) -> dict[str, int]:
    """The number of trials by how they ended."""
    states = [state(trial) for arm in arms for trial in arm.study.get_trials(deepcopy=False)]
    return {name: states.count(name) for name in ("complete", "pruned", "failed")}


def conclude(
    plan: Plan, order: Order, arms: Sequence[Arm], shares: Sequence[Sequence[str]], began: float, asked: Asked
) -> dict[str, Any]:
    """Do and record everything that follows the last trial; it may be done again.

    Raises:
        UserError: no trial is complete, or a final training failed.
        Interrupted: someone asked the sweep to end; its trainings have saved.
    """
    spec, directory = plan.spec, plan.run_dir
    chosen = {arm.value: choose(spec.objectives[0].direction, arm) for arm in arms}
    _write_csv(directory / "trials.csv", spec, arms)
    by_arm: dict[str, dict[str, Any]] = {}
    for arm in arms:
        best = _facts(plan, order, arm, chosen[arm.value])
        own: dict[str, Any] = {"trials": counts([arm]), "best": best}
        if len(spec.objectives) > 1:
            own["pareto"] = [_facts(plan, order, arm, trial) for trial in arm.study.best_trials]
        by_arm[str(arm.value)] = own
        name = "best.yaml" if arm.value is None else f"best_{arm.value}.yaml"
        _write_best(directory / name, plan, best)
    sign = 1 if spec.objectives[0].direction == "maximize" else -1
    first = max(by_arm.values(), key=lambda own: sign * next(iter(own["best"]["values"].values())))
    if spec.arms:
        _write_best(directory / "best.yaml", plan, first["best"])
    drawn = figures.draw(spec, arms, directory / "figures")
    train_final(plan, order, shares, arms, chosen, by_arm, asked)
    total = {
        name: sum(own["trials"][name] for own in by_arm.values()) for name in ("complete", "pruned", "failed")
    }
    result: dict[str, Any] = {
        "status": "finished",
        "sweep": spec.name,
        "study": plan.config.study,
        "trials_asked": plan.trials,
        "trials": total,
        **first,
        **({"trials": total, "arms": by_arm} if spec.arms else {}),
        "objectives": [objective.model_dump() for objective in spec.objectives],
        "seeds": spec.seeds,
        "final_seeds": spec.final.seeds,
        "figures": drawn,
        "timing": {"seconds": time.time() - began, "trial_seconds": _trial_seconds(arms)},
        "versions": _versions(),
        "mlflow_run_id": order.parent_run,
    }
    if order.tracking_uri is not None and order.parent_run is not None:
        labels.finish(order.tracking_uri, order.parent_run, result, directory)
    write_whole(directory / "result.json", json.dumps(result, indent=2, allow_nan=False) + "\n")
    return result


def choose(direction: str, arm: Arm) -> FrozenTrial:
    """The best complete trial; of several objectives, the one of the Pareto front that is best in the first.

    The earliest of equals.

    Raises:
        UserError: none is complete.
    """
    complete = [trial for trial in arm.study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
    if not complete:
        raise UserError("no trial is complete, all were pruned; give the sweep more trials")
    among = arm.study.best_trials if len(arm.study.directions) > 1 else complete
    sign = 1 if direction == "maximize" else -1
    best = max(sign * trial.values[0] for trial in among)
    return next(trial for trial in sorted(among, key=lambda t: t.number) if sign * trial.values[0] == best)


def _facts(plan: Plan, order: Order, arm: Arm, trial: FrozenTrial) -> dict[str, Any]:
    values = dict(zip((o.metric for o in plan.spec.objectives), trial.values or [], strict=True))
    facts: dict[str, Any] = {"trial": trial.number} | ({"arm": arm.value} if plan.spec.arms else {})
    parameters = space.parameters(plan.spec, trial)
    overrides = {**plan.spec.fixed(arm.value), **parameters}
    place = str(order.trial_dir(arm.value, trial.number))
    return {**facts, "values": values, "parameters": parameters, "overrides": overrides, "run_dir": place}


def _write_best(file: Path, plan: Plan, best: Mapping[str, Any]) -> None:
    values = ", ".join(f"{name} {value:.6g}" for name, value in best["values"].items())
    text = (
        f"# Trial {best['trial']} of the sweep {plan.config.study}: {values} (validation, seeds "
        f"{plan.spec.seeds}).\n"
    )
    given = options(plan.config.config_dir, plan.config.trust)
    text += f"#   python -m memlab.train {given}experiment_file={file.name}\n"
    write_whole(file, text + yaml.safe_dump(dict(best["overrides"]), sort_keys=False))


def _write_csv(file: Path, spec: Any, arms: Sequence[Arm]) -> None:
    out = io.StringIO()
    metrics = [o.metric for o in spec.objectives]
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["trial", "arm", "state", *metrics, *spec.space, "steps", "seconds", "taken_over", "error"]
    )
    for arm in arms:
        for trial in arm.study.get_trials(deepcopy=False):
            last = (
                list(trial.intermediate_values)[-1:]
                if trial.state.name == "PRUNED"
                else [trial.user_attrs.get("steps", "")]
            )
            values = list(trial.values or [""] * len(metrics))
            facts = [trial.user_attrs.get(key, "") for key in ("seconds", "taken_over", "error")]
            parameters = [trial.params.get(key, "") for key in spec.space]
            writer.writerow(
                [trial.number, arm.value or "", state(trial), *values, *parameters, *(last or [""]), *facts]
            )
    write_whole(file, out.getvalue())


def _trial_seconds(arms: Sequence[Arm]) -> float:
    return sum(
        float(t.user_attrs.get("seconds", 0.0)) for arm in arms for t in arm.study.get_trials(deepcopy=False)
    )


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    from memlab.version import __version__

    return {
        "memlab": __version__,
        **{name: version(name) for name in ("optuna", "torch", "lightning")},
        "cores": str(os.cpu_count()),
    }


def options(folder: str | None, trusted: Sequence[str] = ()) -> str:
    """What a command line of this sweep's trainings begins with."""
    given = "" if folder is None else f"--config-dir {shlex.quote(folder)} "
    return given + (f"{shlex.quote(word('trust', list(trusted)))} " if trusted else "")


def show(
    result: Mapping[str, Any], directory: Path, folder: str | None = None, trusted: Sequence[str] = ()
) -> None:
    """Print a sweep's result.

    Args:
        folder, trusted: of its trainings; see `--config-dir` and `trust`.
    """
    from rich.markup import escape
    from rich.table import Table

    from memlab.terminal import tables

    console = tables.console()
    trials = result["trials"]
    console.print(
        f"\n[bold]sweep {escape(result['study'])}[/]: {trials['complete']} complete, "
        f"{trials['pruned']} pruned, {trials['failed']} failed"
    )
    for name, own in (result.get("arms") or {"": result}).items():
        best = own["best"]
        title = f"{escape(name)}: trial {best['trial']}" if name else f"best: trial {best['trial']}"
        table = Table(title=title, title_justify="left", show_header="final_default" in own)
        table.add_column("")
        table.add_column("best", justify="right")
        if "final_default" in own:
            table.add_column("without its parameters", justify="right")
        for key, value in best["parameters"].items():
            shown = f"{value:.4g}" if isinstance(value, float) else str(value)
            table.add_row(escape(key), escape(shown))
        table.add_section()
        for key, value in best["values"].items():
            table.add_row(f"{escape(key)}, seeds {', '.join(map(str, result['seeds']))}", f"{value:.6g}")
        if "final" in own:
            seeds = f"seeds {', '.join(map(str, own['final']['seeds']))}"
            for key in ("val/score", "test/accuracy", "test/bits_per_byte"):
                if key in own["final"]["metrics"]:
                    both = [own[what] for what in ("final", "final_default") if what in own]
                    table.add_row(f"{key}, {seeds}", *(_spread(facts["metrics"][key]) for facts in both))
        tables.show(console, table)
        if "final_default" in own and not _better(own):
            console.print(
                "[yellow]On fresh seeds the best is not better than the base without its parameters.[/]"
            )
        if "pareto" in own:
            numbers = ", ".join(str(facts["trial"]) for facts in own["pareto"])
            console.print(
                f"Pareto front: trials {numbers} (result.json, figures/pareto_front.png)", soft_wrap=True
            )
    console.print(f"directory       {directory}", soft_wrap=True)
    console.print(
        f"train the best  python -m memlab.train {options(folder, trusted)}"
        f"experiment_file={directory / 'best.yaml'}",
        soft_wrap=True,
    )


def _better(own: Mapping[str, Any]) -> bool:
    """Whether the best beats the base on the test, by the mean over fresh seeds."""
    for name, sign in (("test/accuracy", 1), ("test/bits_per_byte", -1)):
        if name in own["final"]["metrics"]:
            best, base = (sign * own[what]["metrics"][name]["mean"] for what in ("final", "final_default"))
            return bool(best > base)
    return True


def _spread(numbers: Mapping[str, Any]) -> str:
    deviation = "" if numbers["deviation"] is None else f" ± {numbers['deviation']:.4f}"
    return f"{numbers['mean']:.4f}{deviation}"
