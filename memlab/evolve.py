"""`python -m memlab.evolve run=DIR policy=namm generations=200`: evolve what a key-value cache keeps."""

from __future__ import annotations

import sys

from memlab.config import cli
from memlab.config.checks import NOT_SHOWN
from memlab.training.evolve_settings import EvolveConfig, check_evolve


def job(config: EvolveConfig) -> int:
    from memlab.training.evolving import run

    run(config, sys.argv[1:])
    return 0


def main() -> None:
    cli.run("evolve", check_evolve, job, unused=NOT_SHOWN)


if __name__ == "__main__":
    main()
