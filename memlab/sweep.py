"""`python -m memlab.sweep sweep=rmt_reverse trials=30 workers=2`: a search that survives kills and grows
over machines.
"""

from __future__ import annotations

import sys

from memlab.config import cli
from memlab.sweeping.plan import check_sweep


def job(plan: object) -> int:
    from memlab.sweeping.driver import run

    return run(plan)  # type: ignore[arg-type]


def gather(words: list[str]) -> list[str]:
    """A command line whose words `base.KEY=VALUE` are one word, `base=['KEY=VALUE']`:
    they are keys of another command.
    """
    mine = [word for word in words if not word.startswith("base.")]
    theirs = [word.removeprefix("base.") for word in words if word.startswith("base.")]
    quoted = ",".join("'" + word.replace("'", "\\'") + "'" for word in theirs)
    return [*mine, f"base=[{quoted}]"] if theirs else mine


def main() -> None:
    sys.argv[1:] = gather(sys.argv[1:])
    cli.run("sweep", check_sweep, job)


if __name__ == "__main__":
    main()
