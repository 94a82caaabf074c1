"""`python -m memlab.evaluate run=DIR lengths=[4,8,16]`: a trained run on samples of other lengths, with what its memory costs there."""

from __future__ import annotations

from memlab import cli
from memlab.config import EvaluateConfig, check_evaluate


def job(config: EvaluateConfig) -> int:
    from memlab.training.lengths import evaluate

    evaluate(config)
    return 0


def main() -> None:
    cli.run("evaluate", check_evaluate, job)


if __name__ == "__main__":
    main()
