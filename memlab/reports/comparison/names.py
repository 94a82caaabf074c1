"""Names of tests and groups: as short as is enough to distinguish them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from memlab.reports.comparison.identity import NOISE, test_of, value_of
from memlab.tracking.resume import ADDED
from memlab.tracking.stored_runs import StoredRun

_PARAMETERS = 0.1  # a larger relative difference from the median group is reported
_MOST_SETTINGS = 4  # in a group's name


def titles(runs: Sequence[StoredRun]) -> list[str]:
    """A name for each test: the task, its size, and what distinguishes it from other tests of the task."""
    found = []
    for run in runs:
        same = [test_of(r) for r in runs if r.config["task.name"] == run.config["task.name"]]
        sizes = [
            k for k in ("task.length", "task.num_segments") if k in test_of(run) and run.config[k] is not None
        ]
        more = [k for k in _differing(same) if k not in sizes]
        found.append(
            ", ".join([str(run.config["task.name"]), *(_short(k, run.config) for k in [*sizes, *more])])
        )
    return found


def labels(runs: Sequence[StoredRun]) -> list[str]:
    """A name for each group: the model, and the settings in which it differs from its other groups."""
    found = []
    for run in runs:
        name = str(run.config["model.name"])
        same = [r.config for r in runs if r.config["model.name"] == name]
        keys = sorted(_differing_settings(same), key=lambda k: not k.startswith("model."))
        if _of_0_1(run.config) and not all(map(_of_0_1, same)):
            name += " (memlab 0.1)"
            keys = [key for key in keys if key in run.config]
        more = [f"+{len(keys) - _MOST_SETTINGS} more"] if len(keys) > _MOST_SETTINGS else []
        found.append(", ".join([name, *(_short(key, run.config) for key in keys[:_MOST_SETTINGS]), *more]))
    seen = Counter(found)
    numbers: Counter[str] = Counter()
    for i, label in enumerate(found):
        if seen[label] > 1:
            numbers[label] += 1
            found[i] = f"{label} ({numbers[label]})"
    return found


def _differing_settings(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys that distinguish groups of one model; keys that 0.1 did not have, only among runs of 0.2."""

    def noise(key: str) -> bool:
        return key in NOISE or key.startswith("tracking.")

    shared = set.intersection(*(set(config) for config in configs))
    found = [
        *_differing(configs, lambda key: noise(key) or key not in shared),
        *_differing([c for c in configs if _of_0_1(c)], noise),
        *_differing([c for c in configs if not _of_0_1(c)], noise),
    ]
    return list(dict.fromkeys(found))


def _of_0_1(config: Mapping[str, Any]) -> bool:
    """Whether memlab 0.1 wrote this configuration: its models were not composed."""
    return "model.backbone" not in config


def budgets(runs: Sequence[StoredRun]) -> list[tuple[str, ...]]:
    """For each group, settings outside of its model, and its size, as far as they differ from most others."""
    configs = [run.config for run in runs]
    keys = _differing(configs, lambda key: key.startswith(("model.", "tracking.", "run_dir")) or key in NOISE)
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


def data(groups: Sequence[Sequence[StoredRun]]) -> list[tuple[str, ...]]:
    """For each group, whether its seeds read different text, or other text than most runs."""
    known = Counter(run.data for group in groups for run in group if run.data is not None)
    found: list[tuple[str, ...]] = []
    for group in groups:
        read = {run.data for run in group if run.data is not None}
        if len(read) > 1:
            found.append(("its seeds read different text or use different tokenizers",))
        elif read and read != {known.most_common(1)[0][0]}:
            found.append(("reads other text than most, or uses another tokenizer",))
        else:
            found.append(())
    return found


def _differing(
    configs: Sequence[Mapping[str, Any]], without: Callable[[str], bool] = lambda key: False
) -> list[str]:
    """Keys whose values are not the same everywhere."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [k for k in keys if not without(k) and len({str(value_of(k, config)) for config in configs}) > 1]


def _short(key: str, config: Mapping[str, Any]) -> str:
    value = config.get(key, ADDED.get(key))
    return f"{key.rpartition('.')[2]}={'null' if value is None else value}"
