"""A claim's verdict is computed from its runs: other data, another verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from memlab.config.checks import check
from memlab.config.composing import compose_checked
from memlab.errors import ConfigError
from memlab.evaluation.settings import check_evaluate
from memlab.reports.claims import book, page
from memlab.reports.claims.book import Claim
from memlab.reports.claims.evidence import Evidence
from memlab.reports.claims.verdict import Verdict, judge
from memlab.sweeping import claims
from tests.reports.runs import run

PLAIN: dict[str, Any] = {
    "claim": "RMT is better than nothing",
    "source": "a paper, figure 1",
    "scale": "tiny",
    "minutes": 1,
    "runs": {
        "rmt": {"train": ["model=rmt", "task=copy"], "seeds": [0, 1, 2, 3]},
        "none": {"train": ["model=transformer", "task=copy"], "seeds": [0, 1, 2, 3]},
    },
    "evaluations": [{"runs": ["rmt"], "words": ["lengths=[8]", "controls=[memory_off]"]}],
    "figure": {"label": "segments", "values": "accuracy", "published": {"RMT": {4: 0.99}}},
    "series": [
        {"label": "RMT", "points": {4: {"run": "rmt"}, 8: {"run": "rmt", "at": 8, "metric": "accuracy"}}}
    ],
    "control": [
        {
            "says": "the memory is what it reads",
            "value": {"run": "rmt", "at": 8, "metric": "accuracy", "control": "memory_off"},
            "at_most": 0.3,
        }
    ],
    "holds": [
        {"says": "it learns", "value": {"run": "rmt"}, "at_least": 0.9, "over": "most"},
        {"says": "it is better", "value": {"run": "rmt"}, "above": {"run": "none"}, "margin": 0.1, "p": 0.05},
    ],
}


def written(folder: Path, **changes: Any) -> Claim:
    (folder / "mine.yaml").write_text(yaml.safe_dump({**PLAIN, **changes}))
    return book.read("mine", folder)


def evidence(
    place: Path, claim: Claim, rmt: list[float], none: list[float], far: float = 0.9, off: float = 0.1
) -> Evidence:
    """Runs with these scores, read at 8 segments."""
    for name, scores in (("rmt", rmt), ("none", none)):
        for seed, score in enumerate(scores):
            directory = run(place / name / f"seed_{seed}", name, seed, score)
            entry = {
                "segments": 8,
                "length": 48,
                "samples": 64,
                "accuracy": far,
                "checkpoint": "best.ckpt",
                "step": 10,
            }
            entry["controls"] = {"memory_off": {"accuracy": off}}  # type: ignore[assignment]
            found = {"format": 2, "lengths": [entry]}
            (directory / "evaluation.json").write_text(json.dumps(found))
    return Evidence(claim, place)


GOOD, BAD = [0.95, 0.96, 0.97, 0.92], [0.1, 0.11, 0.12, 0.1]


@pytest.mark.parametrize(
    ("rmt", "none", "off", "verdict"),
    [
        (GOOD, BAD, 0.1, Verdict.HOLDS),
        (GOOD, [0.95, 0.94, 0.96, 0.95], 0.1, Verdict.IN_PART),
        ([0.8, 0.7, 0.8, 0.8], BAD, 0.1, Verdict.IN_PART),
        (BAD, BAD, 0.1, Verdict.FAILS),
        (GOOD, BAD, 0.5, Verdict.CONTROL_FAILED),
        (GOOD, BAD[:2], 0.1, Verdict.NOT_RUN),
    ],
)
def test_the_verdict_follows_the_data(
    rmt: list[float], none: list[float], off: float, verdict: Verdict, tmp_path: Path
) -> None:
    claim = written(tmp_path)
    found = evidence(tmp_path / "runs", claim, rmt, none, off=off)
    assert judge(found)[0] == verdict
    text = page.write(found, tmp_path / "docs").read_text()
    assert f"**{verdict.capitalize()}.**" in text
    assert (tmp_path / "docs" / "img" / "mine.png").stat().st_size > 5000
    assert str(verdict) in page.overview([found])


def test_a_verdict_flips_when_its_data_are_edited(tmp_path: Path) -> None:
    claim = written(tmp_path)
    evidence(tmp_path / "runs", claim, GOOD, BAD)
    for seed in range(4):
        file = tmp_path / "runs" / "rmt" / f"seed_{seed}" / "result.json"
        result = json.loads(file.read_text())
        result["metrics"]["test/accuracy"] = 0.1
        file.write_text(json.dumps(result))
    assert judge(Evidence(claim, tmp_path / "runs"))[0] == Verdict.FAILS


@pytest.mark.parametrize(
    ("condition", "true"),
    [
        ({"at_least": 0.5}, True),
        ({"at_least": 0.51}, False),
        ({"at_most": 0.5}, True),
        ({"at_least": 0.4, "over": "each"}, True),
        ({"at_least": 0.41, "over": "each"}, False),
        ({"at_least": 0.45, "over": "most"}, True),
        ({"at_least": 0.55, "over": "most"}, False),
        ({"near": {"run": "none"}, "margin": 0.1}, True),
        ({"near": {"run": "none"}, "margin": 0.09}, False),
        ({"above": {"run": "none"}}, True),
        ({"above": {"run": "none"}, "margin": 0.1}, False),
        ({"above": {"run": "none"}, "p": 0.05}, False),  # by chance
    ],
)
def test_conditions_by_hand(condition: dict[str, Any], true: bool, tmp_path: Path) -> None:
    says = {"says": "so", "value": {"run": "rmt"}, **condition}
    claim = written(tmp_path, holds=[says], control=[])
    found = evidence(tmp_path / "runs", claim, [0.4, 0.5, 0.6, 0.5], [0.4, 0.4, 0.3, 0.5])
    (finding,) = judge(found)[1]
    assert finding.true is true, finding.found


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"verdict": "holds"}, "unknown key 'verdict'"),
        ({"holds": []}, "holds is missing"),
        ({"evaluations": [{"runs": ["rtm"], "words": []}]}, "there are no runs 'rtm'; there are: none, rmt"),
        ({"runs": {**PLAIN["runs"], "rmt": {"train": ["seed=3"], "seeds": [0]}}}, "seed=3: seeds"),
        ({"holds": [{"says": "x", "value": {"run": "rmt"}}]}, "one of at_least, at_most, above and near"),
    ],
)
def test_mistakes_in_a_file(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"mine\.yaml: .*{said}"):
        written(tmp_path, **changes)


def test_an_unknown_claim() -> None:
    with pytest.raises(
        ConfigError, match=r"claim=facts_fra: there is no such claim\. Did you mean 'facts_far'"
    ):
        book.read("facts_fra")


@pytest.mark.parametrize("name", book.names())
def test_what_a_claim_runs_can_be_run(name: str) -> None:
    """Every training and every reading is a command line without a mistake, and gives the numbers needed."""
    claim = book.read(name)
    for runs in claim.runs.values():
        compose_checked("train", [*runs.train, "seed=0", "run_dir='x'"], check)
    for evaluation in claim.evaluations:
        config = compose_checked("evaluate", ["run=x", *evaluation.words], check_evaluate)
        for _, quantity in claim.quantities():
            if quantity.run in evaluation.runs and quantity.at is not None:
                assert quantity.at in config.lengths, quantity
                assert quantity.control is None or quantity.control in config.controls, quantity
    assert claim.untestable or claim.minutes > 0


def test_only_what_is_missing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = written(tmp_path)
    evidence(tmp_path / "runs", claim, GOOD[:3], BAD)
    begun: list[tuple[str, list[str]]] = []

    class Begun:
        def __init__(self, command: str, **more: Any) -> None:
            self.command = command

        def run(self, jobs: list[Any]) -> int:
            begun.extend((self.command, job.words) for job in jobs)
            if self.command == "train":
                assert len(jobs) == 1
                run(tmp_path / "runs" / "rmt" / "seed_3", "rmt", 3, 0.9)
            return 0

    monkeypatch.setattr(claims, "Jobs", Begun)
    assert claims.run(claim, tmp_path / "runs", 1) == 0
    (training, reading) = begun
    assert training[0] == "train" and training[1][:3] == ["model=rmt", "task=copy", "seed=3"]
    assert "resume=auto" in training[1]
    assert reading[0] == "evaluate" and "seed_3" in reading[1][0] and "lengths=[8]" in reading[1]
