"""`python -m memlab.claims`: the published claims that we test, and what our runs say about each.

claim=NAME runs what is missing of one; report=true writes the pages of all.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from memlab.bounds import Positive
from memlab.config import cli
from memlab.config.sections import Place, Section, typed


class ClaimsConfig(Section):
    """What to do with the claims."""

    claim: str | None
    report: bool
    jobs: Positive
    dir: Place
    out: Place


def check(composed: DictConfig) -> ClaimsConfig:
    from memlab.reports.claims import book

    config = typed(OmegaConf.to_container(composed, resolve=True), ClaimsConfig)
    if config.claim is not None:
        book.read(config.claim)
    return config


def job(config: ClaimsConfig) -> int:
    from memlab.reports.claims import book, listing, page
    from memlab.reports.claims.evidence import Evidence
    from memlab.sweeping import claims

    def evidence(name: str) -> Evidence:
        return Evidence(book.read(name), Path(config.dir).absolute() / name)

    out = Path(config.out).absolute()
    if config.claim is not None:
        found = evidence(config.claim)
        status: Any = claims.run(found.claim, found.root, config.jobs)
        if status:
            if isinstance(status, str):
                print(status, file=sys.stderr)
            return status if isinstance(status, int) else 1
        print(page.write(evidence(config.claim), out / "claims"))
        return 0
    all_ = [evidence(name) for name in book.names()]
    if config.report:
        for one in all_:
            print(page.write(one, out / "claims"))
        target = out / "CLAIMS.md"
        target.write_text(page.overview(all_), encoding="utf-8")
        print(target)
        return 0
    listing.show(all_)
    return 0


def main() -> None:
    cli.run("claims", check, job, groups=False)


if __name__ == "__main__":
    main()
