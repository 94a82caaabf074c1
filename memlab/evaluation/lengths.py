"""Evaluation on the test samples of one length: accuracy under each condition and by depth, and the cost."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from memlab.errors import ConfigError
from memlab.evaluation import samples as reading
from memlab.evaluation.cost import PeakMemory
from memlab.evaluation.intervals import token_share
from memlab.evaluation.memory import Watch, kv_full_bytes
from memlab.evaluation.progress import Meter
from memlab.evaluation.samples import PLAIN, SHUFFLED, TOKENS_AT_ONCE, Answers
from memlab.models.base import Model
from memlab.tasks.base import SyntheticTask

ROWS = 256  # maximum batch size
DEPTHS = 10  # parts of the sample, by where the fact stands, with an accuracy each
_TOKENS = 1 << 22  # maximum of tokens in a batch
_BYTES = 1 << 30  # maximum of a batch's states and open segments


def measure(model: Model, task: SyntheticTask, samples: int, conditions: Sequence[str]) -> dict[str, Any]:
    """Read the first `samples` test samples and return an entry of `lengths` in `evaluation.json`.

    Args:
        conditions: `plain` and controls, see `samples.py`.
    """
    rows = shares(samples, rows_at_once(model, task), 2 * task.members if SHUFFLED in conditions else 1)
    answers = {name: Answers(task.answer_tokens, members=task.members) for name in conditions}
    depths: list[float] = []
    watch: Watch | None = Watch(model)
    curve: list[dict[str, Any]] = []
    peak, began = PeakMemory(model.device), time.perf_counter()
    start = 0
    with Meter(f"{task.num_segments} segments, {samples} samples", samples * task.tokens) as meter:
        for count in rows:
            batch = task.batch("test", start, count)
            for name, more in reading.read(model, batch, conditions, watch, meter.advance).items():
                answers[name].add(more)
            depths += [] if (found := task.depths(batch)) is None else found.tolist()
            if watch is not None:  # only once, since every document costs the same
                curve, watch = watch.curve, None
            start += count
    seconds = time.perf_counter() - began
    figures = {name: answers[name].figures() for name in answers}
    return {
        "segments": task.num_segments,
        "length": task.length,
        "tokens": task.tokens,
        "samples": samples,
        "batch_size": max(rows),
        **figures[PLAIN],
        "controls": {name: figures[name] for name in conditions if name != PLAIN},
        "depth": by_depth(answers[PLAIN], depths),
        "memory": {key: value for key, value in curve[-1].items() if key != "segments"},
        "memory_curve": curve,
        "seconds": seconds,
        "tokens_per_second": samples * task.tokens / seconds,
        "peak_memory": {"kind": peak.kind, "bytes": peak.read()},
    }


def by_depth(answers: Answers, depths: Sequence[float], bins: int = DEPTHS) -> list[dict[str, Any]] | None:
    """Accuracy by where the fact stands, in bins of equal width; bins without samples are left out.

    None = the task has no depths.
    """
    if not depths:
        return None
    index_B = np.minimum((np.asarray(depths) * bins).astype(int), bins - 1)
    right_B = np.asarray(answers.free)
    found = []
    for index in np.unique(index_B):
        right = right_B[index_B == index]
        found.append(
            {
                "from": float(index / bins),
                "to": float((index + 1) / bins),
                "samples": len(right),
                "accuracy": float(right.mean() / answers.tokens),
                "exact_match": float((right == answers.tokens).mean()),
                "interval": token_share(right.tolist(), answers.tokens),
            }
        )
    return found


def samples_for(task: SyntheticTask, wished: int | None, max_tokens: int | None) -> int:
    """How many samples are read: `wished`, or those of the training's test, as far as `max_tokens` allows.

    With None wished, at least two groups of `Task.members`.
    """
    if wished is not None:
        return wished
    return (
        task.test_size
        if max_tokens is None
        else min(task.test_size, max(2 * task.members, max_tokens // task.tokens))
    )


def rows_at_once(model: Model, task: SyntheticTask) -> int:
    """The batch size, so that what is held stays within bounds at any length."""
    if model.state_grows:
        held = kv_full_bytes(model, task.tokens)
        # if the growth ends, only the layers whose memory grows get that large
        memories = model.backbone.memories
        growing = sum(memory.state_grows for memory in memories)
        held = held if model.keeps_everything else held * growing // len(memories)
    else:
        longest = max(task.segment_lengths)
        held = kv_full_bytes(model, longest) + model.init_state(1).nbytes
    return max(
        1,
        min(
            ROWS, _TOKENS // task.tokens, _BYTES // max(1, held), TOKENS_AT_ONCE // max(task.segment_lengths)
        ),
    )


def check(samples: int, controls: Sequence[str], members: int = 1) -> None:
    """Check that there are enough samples for the controls.

    Args:
        members: how many neighbouring samples share their content.

    Raises:
        ConfigError: there are too few.
    """
    if SHUFFLED in controls and samples < 2 * members:
        groups = f", and {members} neighbours share their content" if members > 1 else ""
        raise ConfigError(
            f"samples={samples}: controls=[shuffled] reads on from another sample's state{groups}; it needs "
            f"{2 * members} or more"
        )


def shares(amount: int, most: int, least: int) -> list[int]:
    """`amount` in parts as equal as possible, of at most `most` unless one gets smaller than `least`."""
    parts = min(-(-amount // most), amount // least)
    return [amount * (part + 1) // parts - amount * part // parts for part in range(parts)]
