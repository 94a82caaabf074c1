"""When two configurations count as equal: for one group over seeds, and for one test."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from memlab.tracking.resume import ADDED, FREE
from memlab.tracking.stored_runs import StoredRun

NOISE = FREE | {"seed"}  # keys that do not affect what is learned and measured, and the seed

_NO_TEST = {"task.batch_size", "task.validation_size", "task.validation_documents", "task.validation_bytes"}

# Text is compared by bits per byte of whole documents, however they are cut and tokenized
_NO_TEST_OF_TEXT = {"task.segment_length", "task.num_segments", "task.tokenizer", "task.bpe_size"}


def setting(config: Mapping[str, Any]) -> frozenset[tuple[str, str]]:
    """What the seeds of a group have in common."""
    return frozen(config, NOISE)


def test_of(run: StoredRun) -> dict[str, Any]:
    """The keys that determine the test."""
    without = _NO_TEST | NOISE | (_NO_TEST_OF_TEXT if run.metric == "bits_per_byte" else set())
    return {key: value for key, value in run.config.items() if key.startswith("task.") and key not in without}


def frozen(config: Mapping[str, Any], without: Collection[str] = ()) -> frozenset[tuple[str, str]]:
    """A configuration as a set, to compare it with others; keys newer than a run count as their defaults."""
    keys = (
        k
        for k in config
        if k not in without and not k.startswith("tracking.") and value_of(k, config) is not None
    )
    return frozenset((k, str(config[k])) for k in keys)


def value_of(key: str, config: Mapping[str, Any]) -> Any:
    """The value of a key; None if it is null, absent, or newer than some runs and at its default."""
    value = config.get(key)
    return None if key in ADDED and value == ADDED[key] else value
