"""What is compared with what: runs in groups over seeds, groups in one table for each task, and what may be
said of them.

One table holds runs that answer the same test. Within it a group is all that one configuration gave over its
seeds; it is called by its model, and by what else tells it from other groups of that model (`infini,
memory=off`). Budgets that differ between groups are no reason to leave a run out, but they are said beside
its name.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memlab.evaluation.statistics import (
    LEVEL,
    Spread,
    holm,
    pareto_front,
    permutation_p,
    seeds_needed,
    smallest_p,
)
from memlab.tracking.resume import ADDED, FREE
from memlab.tracking.stored_runs import LeftOut, StoredRun

_NOISE = FREE | {"seed"}  # what changes nothing of what is learned and measured, and the seed
_NO_TEST = {"task.batch_size", "task.validation_size", "task.validation_documents", "task.validation_bytes"}
# Text is judged by bits per byte of whole documents, however they are cut and tokenized
_NO_TEST_OF_TEXT = {"task.segment_length", "task.num_segments", "task.tokenizer", "task.bpe_size"}
_PARAMETERS = 0.1  # more or fewer than the median group is said
_MOST_WORDS = 4  # of a group's name


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        label: unique within its table.
        runs: by seed, one for each.
        failed: further seeds that ended with an error; they count as not solved.
        differs: what is not as in most other groups, such as "max_steps=300, others 600".
    """

    label: str
    runs: tuple[StoredRun, ...]
    failed: tuple[LeftOut, ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def scores(self) -> Spread:
        return Spread(tuple(run.score for run in self.runs))

    @property
    def solve_rate(self) -> str:
        """Share of seeds with at least 0.99, as counts."""
        return f"{self.scores.solved}/{len(self.runs) + len(self.failed)}"

    @property
    def state_bytes(self) -> int:
        return int(self.runs[0].result["memory"]["state_bytes"])

    def ratio(self, name: str) -> float | None:
        """compression_carry or compression_peak; None where nothing is held."""
        found = self.runs[0].result["memory"].get(name)
        return None if found is None else float(found)

    def mean(self, get: Callable[[StoredRun], Any]) -> float | None:
        """Of some number over the seeds; None if a run does not have it."""
        values = [get(run) for run in self.runs]
        return None if any(v is None for v in values) else sum(values) / len(values)

    @property
    def parameters(self) -> int:
        return int(self.runs[0].result.get("parameters", 0))


@dataclass(frozen=True)
class Pair:
    """Two groups, and whether their difference can be chance.

    `p` is of the permutation test alone, `adjusted` by Holm over all pairs.
    """

    better: str
    worse: str
    difference: float
    p: float
    adjusted: float
    possible: float

    @property
    def significant(self) -> bool:
        return self.adjusted <= LEVEL


@dataclass(frozen=True)
class Table:
    """Groups that answer the same test, the best mean first.

    Attributes:
        metric: accuracy, or bits_per_byte (then lower is better).
        paired: scores are compared seed by seed, since on text the seed decides what is read.
    """

    title: str
    metric: str
    groups: tuple[Group, ...]
    chance: float | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.metric == "accuracy"

    @property
    def paired(self) -> bool:
        return not self.higher_is_better

    @cached_property
    def front(self) -> list[str]:
        """Labels of the groups that no other one beats in both state bytes and score."""
        points = [(float(g.state_bytes), g.scores.mean) for g in self.groups]
        return [self.groups[i].label for i in pareto_front(points, self.higher_is_better)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """Every two groups that can be compared, the best first."""
        found = []
        for a, b in itertools.combinations(self.groups, 2):
            x, y = _scores(a, b, self.paired)
            if x:
                p = permutation_p(x, y, self.paired)
                found.append(
                    (
                        a.label,
                        b.label,
                        sum(x) / len(x) - sum(y) / len(y),
                        p,
                        smallest_p(len(x), len(y), self.paired),
                    )
                )
        adjusted = holm([p for *_, p, _ in found])
        return [Pair(a, b, d, p, q, s) for (a, b, d, p, s), q in zip(found, adjusted, strict=True)]

    @cached_property
    def verdict(self) -> str:
        """What may be said of the order, in sentences."""
        best = self.groups[0]
        n = best.scores.n
        seeds = f"{n} seed{'s' * (n > 1)}"
        if len(self.groups) == 1:
            return (
                f"{best.label}: {score(best.scores.mean, self.metric)}, {seeds}. There is nothing to compare "
                "it with."
            )
        said = (
            f"{best.label} has the best mean {words(self.metric)}, {score(best.scores.mean, self.metric)} "
            f"({seeds})."
        )
        mine = [pair for pair in self.pairs if best.label == pair.better]
        ahead = [pair.worse for pair in mine if pair.significant]
        level = [pair.worse for pair in mine if not pair.significant]
        test = f"exact permutation test{' by seed' * self.paired}, Holm over {len(self.pairs)} pairs"
        if ahead:
            said += f" It is better than {listed(ahead)} (p ≤ {LEVEL}, {test})."
        if level:
            said += (
                f" Its lead over {listed(level)} is not significant "
                f"({'p > ' + str(LEVEL) if ahead else test})."
            )
        if self.pairs and not any(pair.significant for pair in self.pairs):
            least = min(pair.possible for pair in self.pairs)
            if least * len(self.pairs) > LEVEL:
                among = min(1, least * len(self.pairs))
                said += (
                    f" So few seeds cannot show more: the smallest p they can give is {least:.2g} for one "
                    f"pair and {among:.2g} among all; {seeds_needed(len(self.pairs), self.paired)} seeds of "
                    "each could."
                )
        return said


@dataclass(frozen=True)
class Comparison:
    """All that a report needs.

    Attributes:
        name: of the experiment, or of the selection.
        command: by which the report is made again.
    """

    name: str
    command: str
    tables: tuple[Table, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def runs(self) -> list[StoredRun]:
        return [run for table in self.tables for group in table.groups for run in group.runs]


def compare(name: str, command: str, found: Iterable[StoredRun | LeftOut]) -> Comparison:
    """Sort runs into tables and groups.

    Of several runs of one configuration and seed, the newest is used and the others are named.
    """
    runs, left_out = [], []
    for run in found:
        if isinstance(run, StoredRun):
            runs.append(run)
        else:
            left_out.append(run)
    newest: dict[tuple[Any, ...], StoredRun] = {}
    for run in sorted(runs, key=lambda r: r.ended):
        key = (_frozen(run.config, _NOISE), run.seed)
        if before := newest.get(key):
            left_out.append(
                LeftOut(before.name, f"is older than {run.name}, which has the same configuration and seed")
            )
        newest[key] = run
    by_test: dict[Any, list[StoredRun]] = {}
    for run in newest.values():
        by_test.setdefault((run.metric, _frozen(_test_of(run), set())), []).append(run)
    titles = _titles([members[0] for members in by_test.values()])
    tables = [
        _table(title, members, left_out) for title, members in zip(titles, by_test.values(), strict=True)
    ]
    return Comparison(name, command, tuple(sorted(tables, key=lambda t: t.title)), tuple(left_out))


def _table(title: str, runs: Sequence[StoredRun], left_out: Sequence[LeftOut]) -> Table:
    by_setting: dict[Any, list[StoredRun]] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        by_setting.setdefault(_setting(run.config), []).append(run)
    members = list(by_setting.values())
    labels, differing = _labels([m[0] for m in members]), _budgets([m[0] for m in members])
    groups = []
    for (setting, group), label, differs in zip(by_setting.items(), labels, differing, strict=True):
        seeds = {run.seed for run in group}
        failed = {
            lost.config["seed"]: lost for lost in left_out if lost.failed and _setting(lost.config) == setting
        }
        groups.append(
            Group(
                label,
                tuple(group),
                tuple(lost for seed, lost in failed.items() if seed not in seeds),
                differs,
            )
        )
    metric = runs[0].metric
    sign = -1 if metric == "accuracy" else 1
    groups.sort(key=lambda g: (sign * g.scores.mean, g.label))
    chance = runs[0].result.get("chance")
    return Table(title, metric, tuple(groups), chance if metric == "accuracy" else None)


def _frozen(config: Mapping[str, Any], without: set[str]) -> frozenset[tuple[str, str]]:
    """For telling configurations apart; a key that older runs do not have yet counts as its default."""
    told = (
        k
        for k in config
        if k not in without and not k.startswith("tracking.") and _value(k, config) is not None
    )
    return frozenset((k, str(config[k])) for k in told)


def _value(key: str, config: Mapping[str, Any]) -> Any:
    """None where a key is null, absent, or newer than some runs and at its default."""
    value = config.get(key)
    return None if key in ADDED and value == ADDED[key] else value


def _setting(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What the seeds of a group have in common."""
    return _frozen(config, _NOISE)


def _test_of(run: StoredRun) -> dict[str, Any]:
    """The keys that decide what the test is."""
    without = _NO_TEST | _NOISE | (_NO_TEST_OF_TEXT if run.metric == "bits_per_byte" else set())
    return {key: value for key, value in run.config.items() if key.startswith("task.") and key not in without}


def _differing(
    configs: Sequence[Mapping[str, Any]], without: Callable[[str], bool] = lambda key: False
) -> list[str]:
    """Keys whose values are not the same everywhere."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [k for k in keys if not without(k) and len({str(_value(k, config)) for config in configs}) > 1]


def _short(key: str, config: Mapping[str, Any]) -> str:
    value = config.get(key, ADDED.get(key))
    return f"{key.rpartition('.')[2]}={'null' if value is None else value}"


def _titles(runs: Sequence[StoredRun]) -> list[str]:
    """A name for each test: the task, its size, and what else tells it from other tests of the same task."""
    titles = []
    for run in runs:
        same = [_test_of(r) for r in runs if r.config["task.name"] == run.config["task.name"]]
        sizes = [
            k
            for k in ("task.length", "task.num_segments")
            if k in _test_of(run) and run.config[k] is not None
        ]
        more = [k for k in _differing(same) if k not in sizes]
        titles.append(
            ", ".join([str(run.config["task.name"]), *(_short(k, run.config) for k in [*sizes, *more])])
        )
    return titles


def _labels(runs: Sequence[StoredRun]) -> list[str]:
    """A name for each group: the model, and the settings in which it differs from other groups of this
    model.
    """
    labels = []
    for run in runs:
        name = str(run.config["model.name"])
        same = [r.config for r in runs if r.config["model.name"] == name]
        keys = sorted(
            _differing(same, lambda key: key in _NOISE or key.startswith("tracking.")),
            key=lambda k: not k.startswith("model."),
        )
        more = [f"+{len(keys) - _MOST_WORDS} more"] if len(keys) > _MOST_WORDS else []
        labels.append(", ".join([name, *(_short(key, run.config) for key in keys[:_MOST_WORDS]), *more]))
    seen = Counter(labels)
    numbers: Counter[str] = Counter()
    for i, label in enumerate(labels):
        if seen[label] > 1:
            numbers[label] += 1
            labels[i] = f"{label} ({numbers[label]})"
    return labels


def _budgets(runs: Sequence[StoredRun]) -> list[tuple[str, ...]]:
    """For each group, which settings outside of its model are not those of most others,
    and whether it is a model of another size.
    """
    configs = [run.config for run in runs]
    keys = _differing(
        configs, lambda key: key.startswith(("model.", "tracking.", "run_dir")) or key in _NOISE
    )
    median = sorted(int(run.result.get("parameters", 0)) for run in runs)[len(runs) // 2]
    found = []
    for run in runs:
        said = []
        for key in keys:
            usual, _ = Counter(str(config.get(key, ADDED.get(key))) for config in configs).most_common(1)[0]
            if str(run.config.get(key, ADDED.get(key))) != usual:
                said.append(f"{_short(key, run.config)}, others {'null' if usual == 'None' else usual}")
        size = int(run.result.get("parameters", 0))
        if median and abs(size / median - 1) > _PARAMETERS:
            said.append(f"{size / median - 1:+.0%} parameters".replace("-", "−"))
        found.append(tuple(said))
    return found


def _scores(a: Group, b: Group, paired: bool) -> tuple[list[float], list[float]]:
    """The scores of two groups; in pairs, of the seeds that both have."""
    if not paired:
        return list(a.scores.values), list(b.scores.values)
    x, y = ({run.seed: run.score for run in group.runs} for group in (a, b))
    shared = sorted(x.keys() & y.keys())
    return [x[s] for s in shared], [y[s] for s in shared]


def score(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric == "accuracy" else f"{value:.3f}"


def words(metric: str) -> str:
    return {"accuracy": "accuracy", "bits_per_byte": "bits per byte"}[metric]


def listed(names: Sequence[str]) -> str:
    """a, b and c; names with commas of their own are set apart."""
    names = [f"“{name}”" if "," in name else name for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
