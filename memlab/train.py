"""`python -m memlab.train model=rmt task=reverse`: train, validate, keep the best, test once. `--help` lists every key."""

from __future__ import annotations

import sys

from memlab import cli
from memlab.config import Config, check
from memlab.tracking import resume


def job(config: Config) -> int:
    origin = resume.find(config)
    from memlab.training.run import train  # torch and lightning take seconds to import; --help and mistakes do without

    train(config, origin, sys.argv[1:])
    return 0


def main() -> None:
    cli.run("train", check, job)


if __name__ == "__main__":
    main()
