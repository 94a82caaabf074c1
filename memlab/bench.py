"""`python -m memlab.bench suite=SUITE`: measure speed or memory, interleaved."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from memlab.benchmarks.settings import BenchConfig
from memlab.config import cli
from memlab.config.checks import check
from memlab.errors import ConfigError, suggestion
from memlab.files import check_place
from memlab.models import choices
from memlab.sweeping.spec import find


def check_bench(composed: DictConfig) -> BenchConfig:
    config = check(composed, BenchConfig)
    if config.trainer.strategy != "single":
        raise ConfigError(
            f"trainer={config.trainer.strategy}: memlab.bench measures one process; use trainer=cpu or "
            "trainer=gpu"
        )
    check_place(f"run_dir={config.run_dir}", Path(config.run_dir).absolute())
    if config.suite in ("peers", "all"):
        _check_peers(config)
    if config.suite == "policies":
        for name in config.policies.names or ():
            choices.target("policy", name)
    if config.suite == "sweep":
        find(config.sweep.name)
    return config


def _check_peers(config: BenchConfig) -> None:
    """Check the comparisons before anything is measured.

    Raises:
        ConfigError: a comparison has a wrong name, or a package is not installed.
    """
    from memlab.benchmarks.peer_names import PACKAGES

    for name in config.peers.models or ():
        if name not in PACKAGES:
            raise ConfigError(
                f"peers.models: no comparison is named {name!r}.{suggestion(name, PACKAGES)} There are: "
                f"{', '.join(PACKAGES)}"
            )
    wanted = {PACKAGES[name] for name in config.peers.models or PACKAGES}
    if missing := sorted(name for name in wanted if importlib.util.find_spec(name) is None):
        raise ConfigError(f"suite={config.suite} needs {', '.join(missing)}: pip install 'memlab[peers]'")


def job(config: BenchConfig) -> int:
    # silences torch's profiler, which reads this when torch is imported
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    import torch

    from memlab.benchmarks import (
        forms,
        memory,
        overhead,
        peers,
        policies,
        roofline,
        state_sizes,
        streaming,
        sweep,
    )
    from memlab.benchmarks.report import ALL

    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    suites: dict[str, Any] = {
        "overhead": overhead,
        "forms": forms,
        "memory": memory,
        "state_sizes": state_sizes,
        "peers": peers,
        "roofline": roofline,
        "streaming": streaming,
        "policies": policies,
        "sweep": sweep,
    }
    for suite in ALL if config.suite == "all" else (config.suite,):
        suites[suite].run(config.model_copy(update={"suite": suite}))
    return 0


def main() -> None:
    cli.run("bench", check_bench, job)


if __name__ == "__main__":
    main()
