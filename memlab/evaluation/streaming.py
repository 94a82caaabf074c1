"""An endless document: speed and process memory while a model reads it segment by segment.

For a text task, the document is made of its test documents, one after the other, over and over, without a
reset. For other tasks it is random tokens: the cost of a memory does not depend on what is read.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from memlab.errors import ConfigError
from memlab.evaluation.cost import PeakMemory
from memlab.evaluation.loss import nats
from memlab.evaluation.memory import Watch
from memlab.evaluation.metrics import CrossEntropyByPosition
from memlab.evaluation.progress import Meter
from memlab.layers.attention import ALL
from memlab.models.base import NOTHING, Model
from memlab.tasks.base import Task
from memlab.tasks.text import TextTask

FIRST = 32_768  # tokens at the first point; each further point is at twice as many, and the last at the end
_WARM_UP = 8  # segments that are read before, and not counted


def check(model: Model, tokens: int) -> None:
    """Check that this many tokens can be streamed.

    Raises:
        ConfigError: there are too few to compare the end with the beginning, or the model keeps every token.
    """
    if tokens < 2 * FIRST:
        raise ConfigError(
            f"stream={tokens}: at least {2 * FIRST} tokens, since the end is compared with the first {FIRST}"
        )
    if model.keeps_everything:
        raise ConfigError(
            f"stream={tokens}: this model keeps every token it has read, so it has no constant memory to show"
        )


@torch.inference_mode()
def stream(model: Model, task: Task, tokens: int) -> dict[str, Any]:
    """Read this many tokens, in whole segments, and return an entry of `streams` in `evaluation.json`."""
    length = max(task.segment_lengths)
    segments = -(-tokens // length)
    points = {-(-n // length) for n in (FIRST << p for p in range(64)) if n < tokens} | {segments}
    source = _text(task, length) if isinstance(task, TextTask) else _random(task.vocab_size, length)
    predicts = isinstance(task, TextTask) and not model.answers_once
    by_position, place_N = CrossEntropyByPosition(length), torch.arange(length)

    state = model.init_state(1)
    for _ in range(_WARM_UP):
        state = model.segment(torch.zeros(1, length, dtype=torch.long, device=model.device), state).state
    state, watch = model.init_state(1), Watch(model)
    weighed = watch.points([length] * segments)
    found: list[dict[str, Any]] = []
    last, done = (time.perf_counter(), 0), 0
    began, peak = last[0], PeakMemory(model.device)
    with Meter(f"streaming {tokens:,} tokens", segments * length) as meter:
        for s in range(segments):
            ids = torch.from_numpy(next(source)).to(model.device)
            tokens_BN = ids[None, :-1]
            if s in weighed:
                watch.see(tokens_BN, state, s)
            output = model.segment(tokens_BN, state, ALL if predicts else NOTHING)
            state = output.state
            if predicts:
                by_position.update(nats(output.logits, ids[None, 1:])[0], place_N + done)
            if s in weighed:
                watch.seen(state, s)
            done += length
            meter.advance(length)
            if s + 1 in points:
                if model.device.type == "cuda":
                    torch.cuda.synchronize(model.device)
                now = time.perf_counter()
                found.append(
                    {
                        "tokens": done,
                        "seconds": now - began,
                        "tokens_per_second": (done - last[1]) / (now - last[0]),
                        "peak_memory": peak.read(),
                        "state_bytes": state.nbytes,
                    }
                )
                last = now, done
    first, end = found[0], found[-1]
    return {
        "tokens": tokens,
        "segment_length": length,
        "segments": segments,
        "points": found,
        "at_32k": first,
        "at_end": end,
        "memory_ratio": end["peak_memory"] / first["peak_memory"],
        "speed_ratio": end["tokens_per_second"] / first["tokens_per_second"],
        "tokens_per_second": done / end["seconds"],
        "peak_memory_kind": peak.kind,
        "memory_curve": watch.curve,
        "by_position": by_position.compute() if predicts else None,
    }


def _random(vocab_size: int, length: int) -> Iterator[NDArray[np.int64]]:
    """Uniform token ids, always the same; each piece ends with the token that the next one begins with."""
    generator = np.random.Generator(np.random.Philox(key=0))
    last = generator.integers(vocab_size, size=1)
    while True:
        piece = np.concatenate([last, generator.integers(vocab_size, size=length)])
        last = piece[-1:]
        yield piece


def _text(task: TextTask, length: int) -> Iterator[NDArray[np.int64]]:
    """The test documents, in pieces of the same form."""
    waiting, held = [np.array([task.begin], dtype=np.int64)], 1
    for ids in itertools.cycle(task.test_documents()):
        waiting.append(ids.astype(np.int64))
        held += len(ids)
        if held <= length:
            continue
        ready = np.concatenate(waiting)
        whole = (held - 1) // length
        for piece in range(whole):
            yield ready[piece * length : (piece + 1) * length + 1].copy()
        waiting = [ready[whole * length :]]
        held = len(waiting[0])
