"""The studies of a sweep: one, or one for each arm.

A study is Optuna's. It remembers which sweep it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from memlab.errors import ConfigError
from memlab.sweeping.dimensions import Scalar
from memlab.sweeping.store import Store

if TYPE_CHECKING:
    import optuna

Direction = Literal["maximize", "minimize"]


@dataclass
class Arm:
    """A study, and what it is for."""

    value: Scalar
    study: optuna.Study


def open_study(
    store: Store, name: str, directions: Sequence[Direction], identity: dict[str, Any], create: bool = True
) -> optuna.Study | None:
    """The study of a name, created if it does not exist.

    Args:
        identity: what must be the same for its trials to be comparable.
        create: False = None if it does not exist.

    Raises:
        ConfigError: there is one of that name with another space, base, objective or seeds.
    """
    import optuna

    if not store.exists() and not create:
        return None
    backend = store.backend()
    with store.lock():
        names = {
            study.study_name for study in optuna.get_all_study_summaries(backend, include_best_trial=False)
        }
        if name not in names:
            if not create:
                return None
            made = optuna.create_study(storage=backend, study_name=name, directions=directions)
            made.set_user_attr("memlab", identity)
            return made
        found = optuna.load_study(study_name=name, storage=backend)
        before = found.user_attrs.get("memlab")
        if before is None and not found.get_trials(deepcopy=False):  # its maker died in between
            found.set_user_attr("memlab", identity)
            before = identity
    if before != identity:
        raise ConfigError(
            f"the study {name!r} in {store.name} is of another sweep: {_difference(before or {}, identity)}. "
            "Its trials could not be compared with these; give another name, study=NAME, or another run_dir"
        )
    return found


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    for part in dict.fromkeys([*now, *before]):
        old, new = before.get(part), now.get(part)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            for key in dict.fromkeys([*new, *old]):
                if old.get(key) != new.get(key):
                    return f"{part}.{key} was {_brief(old.get(key))} and is {_brief(new.get(key))} now"
        return f"{part} was {_brief(old)} and is {_brief(new)} now"
    return "it was not made by memlab"


def _brief(value: Any) -> str:
    if isinstance(value, dict):
        value = {k: v for k, v in value.items() if v not in ({}, None, False)}
        return "{" + ", ".join(f"{k}: {v}" for k, v in value.items()) + "}"
    return "nothing" if value is None else str(value)
