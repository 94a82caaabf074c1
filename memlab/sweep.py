"""`python -m memlab.sweep sweep=rmt_reverse trials=30 workers=2`: search hyperparameters."""

from __future__ import annotations

import sys

from memlab.config import cli
from memlab.sweeping.plan import check_sweep


def job(plan: object) -> int:
    from memlab.sweeping.driver import run

    return run(plan)  # type: ignore[arg-type]


def gather(arguments: list[str]) -> list[str]:
    """Join arguments `base.KEY=VALUE`, which are keys of another command, into one, `base=['KEY=VALUE']`."""
    mine = [argument for argument in arguments if not argument.startswith("base.")]
    theirs = [argument.removeprefix("base.") for argument in arguments if argument.startswith("base.")]
    quoted = ",".join("'" + argument.replace("'", "\\'") + "'" for argument in theirs)
    return [*mine, f"base=[{quoted}]"] if theirs else mine


def main() -> None:
    sys.argv[1:] = gather(sys.argv[1:])
    cli.run("sweep", check_sweep, job)


if __name__ == "__main__":
    main()
