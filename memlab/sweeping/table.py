"""The trials of a sweep while it runs: a live table on a terminal, a line for each change in a file."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from memlab.sweeping.leases import LEASE
from memlab.sweeping.order import Order
from memlab.sweeping.study import Arm
from memlab.terminal import tables
from memlab.terminal.plain import printable
from memlab.terminal.times import duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_COLOURS = {"running": "cyan", "complete": "green", "pruned": "yellow", "failed": "red"}
_WORDS = {
    "RUNNING": "running",
    "COMPLETE": "complete",
    "PRUNED": "pruned",
    "FAIL": "failed",
    "WAITING": "waiting",
}
_ROWS = 24  # of the table; the newest are shown


def state(trial: FrozenTrial) -> str:
    """A trial's state in a word."""
    return _WORDS[trial.state.name]


def parameters(trial: FrozenTrial) -> str:
    """`lr=0.0021 memory_tokens=12`: the last part of each key."""
    return " ".join(
        f"{key.rpartition('.')[2]}={f'{v:.3g}' if isinstance(v, float) else v}"
        for key, v in trial.params.items()
    )


def value(trial: FrozenTrial) -> str:
    """What a trial has come to."""
    if trial.values is not None:
        return ", ".join(
            f"{v:.6g}" if abs(v) >= 1e5 else f"{v:.4f}".rstrip("0").rstrip(".") for v in trial.values
        )
    if trial.intermediate_values:
        step = max(trial.intermediate_values)
        return f"{trial.intermediate_values[step]:.4f} at {step}"
    return "-"


def seconds(trial: FrozenTrial) -> float:
    """How long a trial took, or has taken."""
    if trial.state.is_finished() and "seconds" in trial.user_attrs:
        return float(trial.user_attrs["seconds"])
    if trial.datetime_start is None:
        return 0.0
    return ((trial.datetime_complete or datetime.now()) - trial.datetime_start).total_seconds()


class Shown:
    """Shows the trials while it is entered; `update` looks at them again."""

    def __init__(self, order: Order, arms: Sequence[Arm], workers: int) -> None:
        self.order, self.arms, self.workers = order, arms, workers
        self.goal = order.trials * len(arms)
        self.began = time.monotonic()
        self.console = tables.console(stderr=True)
        self.live: Live | None = None
        self._shown: dict[tuple[Any, int], tuple[str, int]] = {}
        self._ended_before: int | None = None

    def __enter__(self) -> Self:
        if tables.is_live(self.console):
            self.live = Live(
                console=self.console, refresh_per_second=2, redirect_stderr=True, redirect_stdout=True
            )
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None

    def update(self) -> None:
        """Look at the trials and show them."""
        found = [(arm.value, trial) for arm in self.arms for trial in arm.study.get_trials(deepcopy=False)]
        ended = sum(trial.state.name in ("COMPLETE", "PRUNED") for _, trial in found)
        if self._ended_before is None:
            self._ended_before = ended
        if self.live is not None:
            self.live.update(self._table(found, ended))
        else:
            self._lines(found, ended)

    def _left(self, found: Sequence[tuple[Any, FrozenTrial]], ended: int) -> str:
        """Time to the last trial's end, by the mean of those that have ended."""
        times = [seconds(trial) for _, trial in found if trial.state.name in ("COMPLETE", "PRUNED")]
        if not times:
            return ""
        mean = sum(times) / len(times)
        running = [seconds(trial) for _, trial in found if trial.state.name == "RUNNING"]
        begun = sum(max(0.0, mean - spent) for spent in running)
        left = (begun + mean * max(0, self.goal - ended - len(running))) / self.workers
        return f", {duration(left)} left" if ended < self.goal else ""

    def _table(self, found: Sequence[tuple[Any, FrozenTrial]], ended: int) -> Group:
        spec = self.order.spec
        best = self._best(found)
        caption = (
            f"{ended} of {self.goal} trials, "
            f"{duration(time.monotonic() - self.began)}{self._left(found, ended)}{best}"
        )
        table = Table()
        table.add_column("trial", justify="right")
        if spec.arms:
            table.add_column(spec.arms.key)
        for name in ("state", "parameters", ", ".join(o.metric for o in spec.objectives), "time"):
            table.add_column(name, justify="left" if name in ("state", "parameters") else "right")
        for arm, trial in sorted(found, key=lambda item: item[1].datetime_start or datetime.min)[-_ROWS:]:
            words = state(trial)
            again = (
                f" (continued {trial.user_attrs['taken_over']} ×)" if "taken_over" in trial.user_attrs else ""
            )
            shown = f"[{_COLOURS.get(words, 'white')}]{words}[/]{again}"
            table.add_row(
                str(trial.number),
                *([escape(str(arm))] if spec.arms else []),
                shown,
                escape(parameters(trial)),
                value(trial),
                duration(seconds(trial)),
            )
        names = 2 if spec.arms else 1
        parts = tables.parts(table, self.console.width, names)
        return Group(f"sweep {self.order.study}", *parts, caption)

    def _best(self, found: Sequence[tuple[Any, FrozenTrial]]) -> str:
        objectives = self.order.spec.objectives
        complete = [trial for _, trial in found if trial.state.name == "COMPLETE" and trial.values]
        if len(objectives) > 1 or not complete:
            return ""
        choose = max if objectives[0].direction == "maximize" else min
        best = choose(complete, key=lambda trial: trial.values[0])
        return f", best {value(best)} (trial {best.number})"

    def _lines(self, found: Sequence[tuple[Any, FrozenTrial]], ended: int) -> None:
        for arm, trial in found:
            key, now = (arm, trial.number), (state(trial), int(trial.user_attrs.get("taken_over", 0)))
            if self._shown.get(key) == now or (now[0] == "running" and LEASE not in trial.user_attrs):
                continue
            first = not self._shown.get(key)
            self._shown[key] = now
            if (
                first
                and now[0] != "running"
                and self._ended_before == ended
                and time.monotonic() - self.began < 2
            ):
                continue  # of an earlier start
            name = f"trial {trial.number:>3}" if arm is None else f"{arm} trial {trial.number:>3}"
            if now[0] == "running":
                how = "goes on" if now[1] else "begins"
                line = f"{name}  {how:<8}  {parameters(trial)}"
            else:
                tail = (
                    f"  {trial.user_attrs.get('error', '').splitlines()[-1:] or ''}"
                    if now[0] == "failed"
                    else ""
                )
                line = f"{name}  {now[0]:<8}  {value(trial)}  {duration(seconds(trial))}{tail}"
                if now[0] != "failed":
                    line += f"  [{ended} of {self.goal}{self._left(found, ended)}]"
            print(printable(line), file=sys.stderr, flush=True)
