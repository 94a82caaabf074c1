"""Runs what a claim still lacks: trainings first, as jobs of one process, then readings of each run.

Everything is where `memlab.reports.claims.evidence` looks for it, and goes on after a kill: a training from
its checkpoint, a reading from the lengths that `evaluation.json` has.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from memlab.config.checks import check
from memlab.config.composing import compose_checked
from memlab.config.jobs import Job, Jobs, with_threads
from memlab.config.override_file import word
from memlab.config.starter import TRAINING
from memlab.reports.claims.book import Claim, Quantity
from memlab.reports.claims.evidence import Evidence

_READING = ("memlab.reports.evaluation.command", "matplotlib.pyplot")


def run(claim: Claim, root: Path, at_once: int) -> int | str:
    """Train and evaluate what is missing; returns what the process is to end with, as `Jobs.run` does.

    Args:
        root: below which the claim's runs are.
        at_once: how many run at a time.
    """
    evidence = Evidence(claim, root)
    trainings = [
        _training(
            [*runs.train, f"seed={seed}", word("run_dir", evidence.directory(name, seed)), "resume=auto"]
        )
        for name, runs in claim.runs.items()
        for seed in runs.seeds
        if evidence.measured(name, seed).result is None
    ]
    status = _all(trainings, "train", at_once, root, TRAINING)
    if status:
        return status
    evidence = Evidence(claim, root)
    readings = [
        Job([word("run", evidence.directory(name, seed)), *evaluation.words])
        for evaluation in claim.evaluations
        for name in evaluation.runs
        for seed in claim.runs[name].seeds
        if not _has_all(evidence, name, seed, _numbers(evaluation.words, "lengths"))
    ]
    return _all(readings, "evaluate", at_once, root, _READING)


def _all(jobs: Sequence[Job], command: str, at_once: int, root: Path, modules: Sequence[str]) -> int | str:
    if not jobs:
        return 0
    print(f"memlab.claims: {len(jobs)} × memlab.{command}", file=sys.stderr, flush=True)
    logs = root / f"{command}_logs"
    return Jobs(command, at_once=at_once, logs=logs, modules=modules).run(with_threads(jobs, at_once))


def _training(words: list[str]) -> Job:
    """A training, with what its configuration says of threads, processor and steps."""
    return Job(words, compose_checked("train", words, check).trainer.model_dump())


def _numbers(words: Sequence[str], key: str) -> list[int]:
    """The list in `KEY=[1,2]`."""
    said = next((word.partition("=")[2] for word in words if word.startswith(f"{key}=")), "[]")
    return [int(number) for number in said.strip("[]").split(",") if number]


def _has_all(evidence: Evidence, run: str, seed: int, lengths: Sequence[int]) -> bool:
    """Whether a run has been read at all lengths, and has every number that the claim takes from them."""
    measured = evidence.measured(run, seed)
    wanted: list[Quantity] = [q for _, q in evidence.claim.quantities() if q.run == run and q.at in lengths]
    read = {entry["segments"] for entry in measured.lengths}
    return set(lengths) <= read and all(measured.value(quantity) is not None for quantity in wanted)
