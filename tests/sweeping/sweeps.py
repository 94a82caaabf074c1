"""Sweeps of stand-in trainings for tests: a specification, an order, and what must be true of every sweep
that has ended.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from memlab.sweeping.order import Order
from memlab.sweeping.spec import Spec
from memlab.sweeping.store import Store

FAKE = [sys.executable, "-m", "tests.sweeping.fake_training"]
SPEC: dict[str, Any] = {
    "name": "fake",
    "base": {"model": "rmt", "task": "reverse"},
    "space": {"optim.lr": {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}},
    "objectives": [{"metric": "val/score", "direction": "maximize"}],
    "sampler": {"name": "random"},
    "budget": {"trials": 6},
}
ROOT = str(Path(__file__).parents[2])


def spec(**changes: Any) -> Spec:
    return Spec.model_validate({**SPEC, **changes})


def order(directory: Path, fake: dict[str, str] | None = None, **changes: Any) -> Order:
    """An order of quick trials; `fake` is the environment of the stand-in."""
    values: dict[str, Any] = {
        "spec": spec(),
        "study": "fake",
        "storage": f"sqlite:///{directory / 'study.db'}",
        "run_dir": str(directory),
        "trials": 4,
        "since": [0],
        "max_steps": 5,
        "heartbeat": 0.5,
        "grace": 3.0,
        "look_every": 0.01,
        "environment": {"PYTHONPATH": ROOT, **(fake or {})},
        "command": FAKE,
    }
    return Order.model_validate({**values, **changes})


def trials(made: Order) -> list[Any]:
    """All trials of all arms."""
    store = Store(made.storage, made.study)
    arms = made.arms(store)
    found = [trial for arm in arms for trial in arm.study.get_trials(deepcopy=False)]
    store.close()
    return found


def check_whole(made: Order, failed: int = 0) -> list[Any]:
    """Exactly N complete or pruned, none running, each with one finished run directory of its own and
    parameters of its own.
    """
    found = trials(made)
    states = [trial.state.name for trial in found]
    assert set(states) <= {"COMPLETE", "PRUNED", "FAIL"}, states
    assert states.count("COMPLETE") + states.count("PRUNED") == made.trials * len(made.spec.arm_values()), (
        states
    )
    assert states.count("FAIL") == failed, [
        t.user_attrs.get("error") for t in found if t.state.name == "FAIL"
    ]
    assert len({str(t.params) for t in found}) == len(found), "a trial was done twice"
    for trial in found:
        if trial.state.name == "COMPLETE":
            directory = Path(trial.user_attrs["run_dir"])
            for seed in made.spec.seeds:
                steps = (directory / f"seed_{seed}" / "metrics.jsonl").read_text().splitlines()
                assert len(steps) == int(made.environment.get("FAKE_STEPS", "5")), (
                    "it was trained anew, or two wrote at once"
                )
                assert (directory / f"seed_{seed}" / "result.json").exists()
    return found
