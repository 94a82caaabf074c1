"""`python -m memlab.bench suite=overhead|forms|memory|state_sizes`: measured speed, memory of a training, and sizes of memories."""

from __future__ import annotations

import os

from omegaconf import DictConfig

from memlab import cli
from memlab.config import BenchConfig, check
from memlab.errors import ConfigError


def check_bench(composed: DictConfig) -> BenchConfig:
    config = check(composed, BenchConfig)
    if config.trainer.strategy != "single":
        raise ConfigError(f"trainer={config.trainer.strategy}: memlab.bench measures one process; use trainer=cpu or trainer=gpu")
    return config


def job(config: BenchConfig) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler says that it starts and stops; read when torch is imported
    import torch

    from memlab.benchmarks import forms, memory, overhead, state_sizes

    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    {"overhead": overhead, "forms": forms, "memory": memory, "state_sizes": state_sizes}[config.suite].run(config)
    return 0


def main() -> None:
    cli.run("bench", check_bench, job)


if __name__ == "__main__":
    main()
