"""`python -m memlab.evaluate run=DIR lengths=[4,8]`: test a run at other lengths and under controls.

A pretrained model, which no run has trained, is described as for `memlab.train`: `backbone=pretrained
backbone.path=DIR model=transformer task=..` in the place of `run=DIR`.
"""

from __future__ import annotations

import sys

from memlab.config import cli, untrained
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
    words, described = cli.or_exit("evaluate", lambda: untrained.separate("evaluate", sys.argv[1:]))
    sys.argv[1:] = words
    cli.run("evaluate", lambda composed: check_evaluate(composed, described.config()), job)


if __name__ == "__main__":
    main()
