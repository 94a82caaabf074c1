"""`python -m memlab.compare experiment=NAME` or `runs=[..]`: runs in tables, figures and an HTML page."""

from __future__ import annotations

from memlab.config import cli
from memlab.config.checks import check_compare
from memlab.config.sections import CompareConfig


def job(config: CompareConfig) -> int:
    from memlab.reports.comparison.command import compare

    compare(config)
    return 0


def main() -> None:
    cli.run("compare", check_compare, job, groups=False)


if __name__ == "__main__":
    main()
