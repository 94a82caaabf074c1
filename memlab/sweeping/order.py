"""What a worker has to know about its sweep: the driver writes it, and passes it to each worker's standard
input.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from memlab.config.override_file import word
from memlab.sweeping.dimensions import Scalar
from memlab.sweeping.space import pruner
from memlab.sweeping.spec import Spec
from memlab.sweeping.store import Store
from memlab.sweeping.study import Arm, open_study


class Order(BaseModel):
    """A sweep as its workers see it."""

    model_config = ConfigDict(frozen=True)

    spec: Spec
    study: str
    storage: str
    run_dir: str
    trials: int
    since: list[int]
    max_steps: int
    tracking: list[str] = ["tracking=off"]  # overrides
    tracking_uri: str | None = None
    parent_run: str | None = None
    heartbeat: float = 10.0
    grace: float = 120.0
    deadline: float | None = None
    restarts: int = 3
    look_every: float = 0.2
    environment: dict[str, str] = {}
    config_dir: str | None = None
    trust: list[str] = []
    command: list[str] | None = None

    def study_name(self, arm: Scalar) -> str:
        return self.study if arm is None else f"{self.study}/{arm}"

    def arms(self, store: Store) -> list[Arm]:
        """The studies, created if they do not exist.

        Raises:
            UserError: see `open_study`.
        """
        directions = [objective.direction for objective in self.spec.objectives]
        arms = []
        for value in self.spec.arm_values():
            study = open_study(store, self.study_name(value), directions, self.spec.identity())
            assert study is not None
            study.pruner = pruner(self.spec, self.max_steps)
            arms.append(Arm(value, study))
        return arms

    def trial_dir(self, arm: Scalar, number: int) -> Path:
        place = Path(self.run_dir) / "trials"
        return (place if arm is None else place / str(arm)) / f"{number:04d}"

    def words(
        self, arm: Scalar, parameters: dict[str, Any], seed: int, run_dir: Path, test: bool = False
    ) -> list[str]:
        """The command line of a training after the program."""
        own = {"seed": seed, "run_dir": str(run_dir), "resume": "auto", "trainer.test": test}
        overrides = {**self.spec.fixed(arm), **parameters, **own}
        folder = [] if self.config_dir is None else ["--config-dir", self.config_dir]
        trusted = [word("trust", self.trust)] if self.trust else []
        given = [word(key, value) for key, value in overrides.items()]
        return [*folder, *given, *trusted, *self.tracking]
