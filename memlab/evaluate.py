"""`python -m memlab.evaluate run=DIR lengths=[4,8]`: test a run at other lengths and under controls."""

from __future__ import annotations

import sys

from memlab.config import cli
from memlab.evaluation.settings import EvaluateConfig, check_evaluate


def job(config: EvaluateConfig) -> int:
    from memlab.reports.evaluation.command import evaluate

    try:
        evaluate(config)
    except KeyboardInterrupt:
        print(
            "\nmemlab.evaluate: interrupted; what was finished is in evaluation.json, and the same command "
            "continues from there",
            file=sys.stderr,
        )
        return 130
    return 0


def main() -> None:
    cli.run("evaluate", check_evaluate, job)


if __name__ == "__main__":
    main()
