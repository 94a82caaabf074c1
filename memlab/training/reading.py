"""Training on text: each batch row reads document after document, and its state goes on from step to step.

The state is reset in exactly the rows and at exactly the segments where a document begins, and its gradient
is cut between steps. Reading a document in one row or another, beside whatever other documents, gives the
same numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from memlab.config.sections import Config
from memlab.evaluation.perplexity import Tally
from memlab.layers.state import State
from memlab.models.base import Model
from memlab.splits import Held
from memlab.tasks.text import TextTask
from memlab.training import sharding, truncation
from memlab.training.curriculum import Curriculum
from memlab.training.data import ReadingBatch, TextStream
from memlab.training.module import MemoryModule, added, at_least_float32
from memlab.training.processes import Processes
from memlab.training.truncation import Kept


@dataclass
class _Step:
    """A training step in progress: its batch, how many targets count in those of all processes,
    and what its rows gave so far.
    """

    batch: ReadingBatch
    counted: int
    resets: list[bool] | None
    states: list[State] = field(default_factory=list)
    metrics: list[dict[str, Tensor]] = field(default_factory=list)


class ReadingModule(MemoryModule):
    """Trains a model on streams of documents.

    Metrics, by their names in every tracker: `train/loss` (nats for each token of this batch); `val/` and
    `test/` `loss` (nats for each token), `perplexity`, `bits_per_byte` and `word_perplexity`, over all that
    is read of the split. `val/score` ranks checkpoints: the loss with its sign turned.
    """

    headline = "bits_per_byte"

    def __init__(self, model: Model, config: Config, stream: TextStream, processes: Processes) -> None:
        super().__init__(model, config, processes)
        self.stream = stream
        self.carried: State | None = None  # behind the last training step; None = nothing has been read
        # the same out of a checkpoint, before the model is on its device
        self.saved: dict[str, Any] | None = None
        self.tokens = 0  # that counted in the loss so far
        self.step: _Step | None = None  # in progress
        self.read_so_far: State | None = None  # within a validation or test
        self.tally: Tally = Tally(1)

    @property
    def task(self) -> TextTask:
        return self.stream.task

    @property
    def curriculum(self) -> Curriculum:
        return self.stream.curriculum

    def on_train_start(self) -> None:
        if self.saved is not None:
            template = self.model.init_state(len(self.stream.rows)).detach()
            self.carried = template.from_dict(self.saved).map(lambda tensor: tensor.to(self.device))
            self.saved = None

    def read(
        self,
        batch: ReadingBatch,
        state: State | None,
        depth: int | None = None,
        recompute: int = 0,
        resets: Sequence[bool] | None = None,
    ) -> Kept:
        """Nats of each target of a step, [B, T], 0 where it does not count; and the state behind it."""

        def score(logits_BnV: Tensor, start: int) -> tuple[Tensor]:
            now = slice(start, start + logits_BnV.shape[1])
            targets_Bn = batch.targets_BT[:, now]
            nats = F.cross_entropy(
                at_least_float32(logits_BnV.flatten(0, 1)), targets_Bn.flatten(), reduction="none"
            )
            return (torch.where(batch.counts_BT[:, now], nats.view_as(targets_Bn), 0.0),)

        tokens_BT, lengths, begins_BS = batch.tokens_BT, batch.segment_lengths, batch.begins_BS
        return truncation.keep(
            self.model, tokens_BT, lengths, score, state, depth, None, begins_BS, recompute, resets
        )

    def begin_step(self, batch: ReadingBatch) -> None:
        self.step = _Step(batch, self.processes.sum(batch.counted), self.resets(batch))

    def resets(self, batch: ReadingBatch) -> list[bool] | None:
        """The segments with which a document begins in a row of any process, if all are to read the same
        segments together.
        """
        if not sharding.shared(self):
            return None
        return [
            any(begins)
            for begins in zip(*self.processes.gather(batch.begins_BS.any(0).tolist()), strict=True)
        ]

    def step_loss(self, rows: range) -> Tensor:
        assert self.step is not None
        batch = self.step.batch.part(rows)
        state = None if self.carried is None else self.carried.map(lambda t: t[rows.start : rows.stop])
        kept = self.read(batch, state, self.config.bptt_depth, self.recompute, self.step.resets)
        self.step.states.append(kept.state.detach())
        # The mean over the processes, which is what the gradients get, is to be the mean over the tokens of
        # all of them
        loss = kept.values[0].sum() * self.processes.size / self.step.counted
        share = len(rows) / len(self.step.batch.tokens_BT)
        self.step.metrics.append(
            {"train/loss": loss.detach(), **{name: value * share for name, value in kept.diagnostics.items()}}
        )
        return loss

    def end_step(self) -> None:
        assert self.step is not None
        self.carried = joined(self.step.states)
        self.stream.trained_on(self.step.batch)
        self.tokens += self.step.counted
        self.train_metrics = self.processes.means(added(self.step.metrics))
        if self.curriculum.mixed:
            self.train_metrics["train/segments"] = self.train_metrics["train/loss"].new_tensor(
                len(self.step.batch.segment_lengths)
            )
        self.step = None

    def start_evaluation(self) -> None:
        self.read_so_far = None
        self.tally = Tally(self.task.segment_lengths[0])

    def evaluate(self, batch: ReadingBatch) -> None:
        if not len(batch.tokens_BT):  # more processes than documents
            return
        kept = self.read(batch, self.read_so_far)
        self.read_so_far = kept.state
        self.tally.add(kept.values[0], batch.counts_BT, batch.positions())

    def evaluated(self, split: Held) -> dict[str, float]:
        amounts = self.task.amounts(split)
        self.tally = Tally.of(self.processes.gather(self.tally))
        if self.tally.tokens != amounts.tokens:
            raise RuntimeError(f"{self.tally.tokens} tokens were read of the {amounts.tokens} in {split}")
        return self.tally.metrics(amounts.bytes, amounts.words)

    def score(self, metrics: Mapping[str, float]) -> float:
        return -metrics["loss"]

    def place(self) -> str:
        stage = f"stage {self.curriculum.words}, " if len(self.curriculum.stages) > 1 else ""
        return f"{stage}{self.tokens:,} tokens"

    def place_metrics(self) -> dict[str, float]:
        return {"train/tokens": self.tokens, **self.curriculum.metrics}

    def short_words(self) -> str:
        return ""

    def validation_words(self, metrics: Mapping[str, float]) -> str:
        return (
            f"{metrics['val/bits_per_byte']:.4f} bits per byte  (perplexity {metrics['val/perplexity']:.2f})"
        )

    def validated(self, step: int, metrics: Mapping[str, float]) -> bool:
        self.curriculum.update(step, None)
        return False

    def report(self) -> dict[str, Any]:
        test = self.task.amounts("test")
        return {
            "tokens": self.tokens,
            "stages": len(self.curriculum.stages),
            "stages_began_at": self.curriculum.began_at,
            "test_read": {
                "documents": test.documents,
                "tokens": test.tokens,
                "bytes": test.bytes,
                "words": test.words,
            },
            "by_position": self.tally.by_position(),
        }

    def common_state(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "batches": self.stream.batches,
            "curriculum": self.curriculum.state_dict(),
        }

    def load_common_state(self, saved: dict[str, Any]) -> None:
        self.tokens, self.stream.batches = saved["tokens"], saved["batches"]
        self.curriculum.load_state_dict(saved["curriculum"])

    def own_state(self) -> dict[str, Any]:
        # a slice would be saved with all that it is cut from
        carried = None if self.carried is None else self.carried.map(lambda t: t.cpu().clone()).to_dict()
        return {"position": self.stream.position, "carried": carried}

    def load_own_state(self, saved: list[dict[str, Any]]) -> None:
        if saved[0]["carried"] is not None:
            rows = self.stream.rows
            self.stream.position = [row for own in saved for row in own["position"]][rows.start : rows.stop]
            self.saved = dealt([own["carried"] for own in saved], rows)


def joined(states: Sequence[State]) -> State:
    """The rows of several states, one after another."""
    joined: State = states[0] if len(states) == 1 else pytree.tree_map(lambda *rows: torch.cat(rows), *states)
    return joined


def dealt(parts: Sequence[Any], rows: range) -> Any:
    """Some rows out of the states of several processes, as `State.to_dict` gives them."""
    first = parts[0]
    if isinstance(first, dict):
        return {key: dealt([part[key] for part in parts], rows) for key in first}
    if isinstance(first, list):  # of layers
        return [dealt(layer, rows) for layer in zip(*parts, strict=True)]
    return torch.cat(list(parts))[rows.start : rows.stop].clone()
