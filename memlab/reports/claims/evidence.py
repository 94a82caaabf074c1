"""What the runs of a claim have measured so far, read from their directories."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from memlab.evaluation import record
from memlab.reports.claims.book import Claim, Quantity


@dataclass(frozen=True)
class Measured:
    """One run.

    Attributes:
        result: its `result.json`; None = it has not finished.
        lengths: its readings, see `memlab.evaluation.record.best`.
    """

    result: Mapping[str, Any] | None
    lengths: tuple[Mapping[str, Any], ...] = ()

    def value(self, quantity: Quantity) -> float | None:
        """A number of it; None = it was not measured."""
        if self.result is None:
            return None
        if quantity.at is None:
            found = self.result["metrics"].get(quantity.metric)
        else:
            entry: Any = next((e for e in self.lengths if e["segments"] == quantity.at), {})
            entry = entry if quantity.control is None else (entry.get("controls") or {}).get(quantity.control)
            found = (entry or {}).get(quantity.metric)
        return None if found is None else float(found)


@dataclass(frozen=True)
class Evidence:
    """All runs of a claim.

    Attributes:
        root: below which they are: RUNS/seed_SEED.
    """

    claim: Claim
    root: Path
    _read: dict[tuple[str, int], Measured] = field(default_factory=dict)

    def directory(self, run: str, seed: int) -> Path:
        return self.root / run / f"seed_{seed}"

    def measured(self, run: str, seed: int) -> Measured:
        """One run, as it is on the disk now, or was when it was first asked for."""
        key = (run, seed)
        if key not in self._read:
            place = self.directory(run, seed)
            file = place / "result.json"
            result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
            entries = record.read(place / "evaluation.json").get("lengths", [])
            self._read[key] = Measured(result, tuple(record.best(entries)) if entries else ())
        return self._read[key]

    def values(self, quantity: Quantity) -> dict[int, float]:
        """A number by seed, for the seeds that have it."""
        found = {
            seed: self.measured(quantity.run, seed).value(quantity)
            for seed in self.claim.runs[quantity.run].seeds
        }
        return {seed: value for seed, value in found.items() if value is not None}

    def complete(self, quantity: Quantity) -> bool:
        return len(self.values(quantity)) == len(self.claim.runs[quantity.run].seeds)

    @cached_property
    def missing(self) -> list[str]:
        """The runs that have not finished, and the numbers that were not measured, as lines."""
        unfinished = [
            f"{run}, seed {seed}: not finished"
            for run, runs in self.claim.runs.items()
            for seed in runs.seeds
            if self.measured(run, seed).result is None
        ]
        unread = {
            f"{q.run}: {q.metric} at {q.at} segments{f', {q.control}' if q.control else ''}: not measured"
            for _, q in self.claim.quantities()
            if q.at is not None and not self.complete(q)
        }
        return unfinished + sorted(unread)

    @property
    def finished(self) -> int:
        """How many runs have finished."""
        return sum(
            self.measured(run, seed).result is not None
            for run, runs in self.claim.runs.items()
            for seed in runs.seeds
        )

    @property
    def results(self) -> list[Mapping[str, Any]]:
        """The `result.json` of all that have finished."""
        all_ = [self.measured(run, seed) for run, runs in self.claim.runs.items() for seed in runs.seeds]
        return [one.result for one in all_ if one.result is not None]
