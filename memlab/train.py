"""`python -m memlab.train model=rmt task=reverse`: train, validate, keep the best, test once. `--help` lists every key."""

from __future__ import annotations

from memlab import cli
from memlab.config import Config, check


def job(config: Config) -> int:
    from memlab.training.run import train  # torch and lightning take seconds to import; --help and mistakes do without

    train(config)
    return 0


def main() -> None:
    cli.run("train", check, job)


if __name__ == "__main__":
    main()
