"""`evaluation.json`: what has been measured on a run after its training.

Written whole after every measurement, so that nothing is computed twice.

    {
      "format": 2,
      "run": its directory,  "model", "task": names,  "seed": of the training,
      "trained_segments", "trained_tokens": its longest samples (text, or never trained: null),
      "lengths_in": "segments" or "tokens", what `lengths` counts for this task (text: null),
      "score": "accuracy" or "exact_match", what figures and tables by depth show (text: null),
      "chance": accuracy of guessing (text: null),
      "cost": {"parameters": n, "flops_per_token": {"inference": n, "training": n}}, see evaluation/cost.py
      "lengths": [ .. ]     one entry for each length and key (below), in the order of lengths
      "texts": [ .. ]       text tasks: one entry for each key
      "streams": [ .. ]     one entry for each key
      "inside": [ .. ]      one entry for each key
    }

Every entry has "policy" (null, or name and options of the policy that layers with full attention are read
with, instead of as trained), "checkpoint" (file name), "step" (of the training, where that was written),
"finished" (UTC, ISO 8601), "versions". Its key has everything that the figures depend on. Another key makes
another entry; an entry with the same key is only measured again with `again=true`.

    lengths   key: policy, checkpoint, step, segments, length, samples         by: `evaluation/lengths.py`
              accuracy (free-running), exact_match, accuracy_teacher_forced, loss
              intervals.{the first three}: [low, high], 95 %
              controls.{memory_off, shuffled}: the same figures under the requested controls
              depth: [{from, to, samples, accuracy, exact_match, interval (of accuracy)}] or null: by where
                the fact stands, 0 = beginning of the sample
              memory: {tokens, kv_full_bytes, state_bytes, used_bytes (without padding), peak_bytes,
                compression_carry, compression_peak}, for one document at its end
              memory_curve: [{segments, .. as memory}] after 1, 2, 4, .. segments
              tokens, batch_size, seconds, tokens_per_second, peak_memory.{kind: rss or gpu, bytes}, device
    texts     key: policy, checkpoint, step, documents, bytes (of each)        by: `evaluation/documents.py`
              loss, perplexity, bits_per_byte, bits_per_word, word_perplexity
              intervals.{loss, bits_per_byte}: over documents, or null
              by_position: [{from, tokens, loss}]
              controls.{..}: the same with tokens, loss, by_position
              documents_read, tokens, lost_bytes (that the tokenizer does not give back)
              memory, memory_curve, seconds, tokens_per_second, peak_memory, device
    streams   key: policy, checkpoint, step, tokens, segment_length, device, threads
                                                                               by: `evaluation/streaming.py`
              points: [{tokens, seconds, tokens_per_second (since the point before), peak_memory,
                state_bytes}]
              at_32k, at_end: two of these; memory_ratio, speed_ratio: the end over 32K; memory_curve
    inside    key: policy, checkpoint, step, segments, length, samples         by: `evaluation/inside.py`
              memory_share.{memory_tokens, remembered, gated}: {layers, values [segments][layers][heads]}:
                means over samples and tokens
              similarity.{memory_tokens, layer1, layer2, ..}: {between [1 + segments][1 + segments],
                by_slot [slots][segments] of memory tokens, else null}
              retrieval: [{layer, from [bins], keys [heads][bins], attention [heads][bins]}]: how far back
                retrieved keys lie, for each layer that retrieves
              missing: [sentences]: what cannot be shown for this model, and why
              Layers are counted from 1; heads and slots are in order. Row 0 of `between` is the initial
              state; a state of zeros has cosine 0 with every other

Format 1 is that of memlab 0.1: it counted layers from 0, called `remembered` cache, and had one similarity
and one retrieval.

`checkpoint` is a file's name, or `pretrained`, of step 0: a pretrained model that no run has trained.

`best(..)` selects the entries that make a curve: those of one policy and of the newest step of best.ckpt, and
among several numbers of samples the largest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock

from memlab.errors import UserError
from memlab.files import write_whole
from memlab.tracking.checkpoint_file import BEST, PRETRAINED

NAME = "evaluation.json"
FORMAT = 2
KEYS: dict[str, tuple[str, ...]] = {
    "lengths": ("policy", "checkpoint", "step", "segments", "length", "samples"),
    "texts": ("policy", "checkpoint", "step", "documents", "bytes"),
    "streams": ("policy", "checkpoint", "step", "tokens", "segment_length", "device", "threads"),
    "inside": ("policy", "checkpoint", "step", "segments", "length", "samples"),
}


class Record:
    """A run's `evaluation.json`. Several processes may add to it at the same time.

    Args:
        directory: of the run.
        facts: entries about the run itself.

    Raises:
        UserError: the file exists and cannot be read, or the directory cannot be written to.
    """

    def __init__(self, directory: Path, facts: Mapping[str, Any]) -> None:
        self.file = directory / NAME
        self.facts = {"format": FORMAT, **facts}
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be made: {error.strerror}") from None
        self.whole()

    def whole(self) -> dict[str, Any]:
        """Everything that has been measured."""
        empty: dict[str, Any] = {kind: [] for kind in KEYS}
        return {
            **self.facts,
            **empty,
            **{kind: entries for kind, entries in read(self.file).items() if kind in KEYS},
        }

    def find(self, kind: str, **key: Any) -> dict[str, Any] | None:
        """The entry with this key, if there is one."""
        return next((entry for entry in self.whole()[kind] if _key(kind, entry) == _key(kind, key)), None)

    def add(self, kind: str, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Write an entry, in place of one with the same key, and return it as it is in the file.

        Raises:
            UserError: the file cannot be written.
        """
        new = {**entry, "finished": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            with FileLock(f"{self.file}.lock"):
                found = self.whole()
                found[kind] = [other for other in found[kind] if _key(kind, other) != _key(kind, new)] + [new]
                if kind == "lengths":
                    found[kind].sort(key=lambda e: (e["segments"], e["length"], e["samples"]))
                text = json.dumps(found, indent=2, allow_nan=False)
                write_whole(self.file, text + "\n")
        except OSError as error:
            raise UserError(f"{self.file} cannot be written: {error.strerror or error}") from None
        again: dict[str, Any] = json.loads(text)[kind][found[kind].index(new)]
        return again


def read(file: Path) -> dict[str, Any]:
    """The content of an `evaluation.json`; {} if there is none.

    Raises:
        UserError: it cannot be read, or it has another format.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{file} cannot be read ({error}); remove it, and what is in it is computed again"
        ) from None
    format = found.get("format") if isinstance(found, dict) else None
    if format != FORMAT:
        raise UserError(
            f"{file} has format {format}, this memlab writes format {FORMAT}; move it away, and what is in "
            "it is computed again"
        )
    return dict(found)


def best(entries: Sequence[dict[str, Any]], policy: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The entries of `lengths` for the best checkpoint, one per length, with the most samples."""
    files = (BEST, PRETRAINED)
    own = [entry for entry in entries if entry["checkpoint"] in files and entry.get("policy") == policy]
    newest = [entry for entry in own if entry["step"] == max(e["step"] for e in own)]
    chosen: dict[tuple[int, int], dict[str, Any]] = {}
    for entry in sorted(newest, key=lambda e: e["samples"]):
        chosen[entry["segments"], entry["length"]] = entry
    return [chosen[size] for size in sorted(chosen)]


def _key(kind: str, entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes an entry another one; entries from before there were policies have none."""
    return tuple(entry.get(name) if name == "policy" else entry[name] for name in KEYS[kind])
