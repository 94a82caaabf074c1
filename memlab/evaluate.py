"""`python -m memlab.evaluate run=DIR lengths=[4,8,4096]`: a trained run at other lengths, under controls,
or on an endless stream.
"""

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
            "goes on from there",
            file=sys.stderr,
        )
        return 130
    return 0


def main() -> None:
    cli.run("evaluate", check_evaluate, job)


if __name__ == "__main__":
    main()
