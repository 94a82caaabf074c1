"""`python -m memlab.show task=reverse`: print a few samples of a task, with segments and answers marked."""

from __future__ import annotations

from memlab.config import cli
from memlab.config.checks import NOT_SHOWN, check_show
from memlab.config.sections import ShowConfig


def job(config: ShowConfig) -> int:
    from memlab.reports.samples import print_samples

    print_samples(config)
    return 0


def main() -> None:
    cli.run("show", check_show, job, unused=NOT_SHOWN)


if __name__ == "__main__":
    main()
