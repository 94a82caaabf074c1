"""`python -m memlab.evaluate run=DIR lengths=[4,8,4096]`: a trained run at other lengths, under controls, or on an endless stream."""

from __future__ import annotations

from memlab import cli
from memlab.config import EvaluateConfig, check_evaluate


def job(config: EvaluateConfig) -> int:
    from memlab.evaluation.run import evaluate

    evaluate(config)
    return 0


def main() -> None:
    cli.run("evaluate", check_evaluate, job)


if __name__ == "__main__":
    main()
