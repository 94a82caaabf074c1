"""Training on text: each batch row reads document after document, and its state is carried from step to step.

The state is reset in exactly the batch rows and segments where a document begins, and its gradient is cut
between steps. A document gives the same numbers in any batch row and together with any other documents.

Metrics, by their names in the log: `train/loss` (nats per token of this batch), `train/auxiliary_loss` (see
`parts.py`); `val/` and `test/` `loss` (nats per token), `perplexity`, `bits_per_byte`, `bits_per_word` and
`word_perplexity`, over everything that is read of the split.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from memlab.config.sections import Config
from memlab.errors import ConfigError
from memlab.evaluation import metrics
from memlab.evaluation.loss import nats
from memlab.models.base import Model, ModelState
from memlab.splits import Held
from memlab.tasks.text import TextTask
from memlab.training import sharding, truncation
from memlab.training.curriculum import Curriculum
from memlab.training.data import ReadingBatch, TextBatches, TextStream
from memlab.training.parts import Evaluator, Objective, Training, added
from memlab.training.processes import Processes


def training(
    config: Config, task: TextTask, model: Model, curriculum: Curriculum, processes: Processes
) -> Training:
    """The parts for a text task.

    Raises:
        ConfigError: the model cannot read text.
    """
    name, text = config.model["name"], config.task["name"]
    if model.answers_once:
        raise ConfigError(
            f"model={name} answers once per sample and does not predict text; task={text} needs a decoder"
        )
    if model.keeps_everything:
        raise ConfigError(
            f"model={name} as configured keeps every token of a document, and the documents of task={text} "
            "are long; use model=transformer_xl with a long model.mem_len"
        )
    rows = processes.share(task.batch_size)
    return Training(
        TextObjective(model, config, rows, processes),
        TextEvaluator(model, task, processes),
        TextStream(curriculum, config.trainer.max_steps, config.seed, rows, processes),
        validation=TextBatches(task, "validation", processes),
        test=TextBatches(task, "test", processes),
    )


class TextObjective(Objective):
    """Cross-entropy of every token, and the state that each batch row carries from step to step.

    Attributes:
        carried: the state after the last step; None = nothing has been read.
        tokens: targets counted in the loss so far, over all processes.

    Args:
        rows: the batch rows that this process reads.
    """

    batch: ReadingBatch  # of the step in progress
    counted: int  # targets that count in the step, over all processes
    # whether a document begins with each segment in any process, if the processes have to agree
    resets: list[bool] | None
    read: list[dict[str, Tensor]]  # metrics of the step's parts so far
    states: list[ModelState]  # after each of these parts

    def __init__(self, model: Model, config: Config, rows: range, processes: Processes) -> None:
        super().__init__(model, config, processes)
        self.rows = rows
        # a layer's weights are gathered when it is used, so all processes have to make the same calls
        self.agree = sharding.asked_for(config.trainer, processes)
        self.carried: ModelState | None = None
        self.tokens = 0
        self._saved: dict[str, Any] | None = None  # `carried` from a checkpoint, until it is first needed

    def begin(self, batch: ReadingBatch) -> None:
        self.batch, self.read, self.states = batch, [], []
        self.counted = self.processes.sum(batch.counted)
        self.resets = None
        if self.agree:
            everyone = self.processes.gather(truncation.resets_of(batch.begins_BS))
            self.resets = [any(begins) for begins in zip(*everyone, strict=True)]

    def loss(self, rows: range) -> Tensor:
        if self._saved is not None:
            template = self.model.init_state(len(self.rows)).detach()
            self.carried = template.from_dict(self._saved).map(lambda t: t.to(self.model.device))
            self._saved = None
        batch = self.batch.part(rows)
        state = None if self.carried is None else self.carried.map(lambda t: t[rows.start : rows.stop])
        resets = self.resets or truncation.resets_of(batch.begins_BS)
        calls = truncation.plan(batch.segment_lengths, self.depth, None, resets, self.recompute)
        kept = text_nats(self.model, batch, calls, state)
        self.states.append(kept.state.detach())
        # Gradients are averaged over the processes, which has to give the mean over the tokens of all of them
        loss = kept.values[0].sum() * self.processes.size / self.counted
        share = len(rows) / len(self.batch.tokens_BT)
        found = {"train/loss": loss.detach()}
        means = dict(kept.diagnostics)
        if kept.auxiliary is not None:
            loss = loss + self.auxiliary(kept.auxiliary, means) * share
        self.read.append(found | {name: value * share for name, value in means.items()})
        return loss

    def end(self) -> dict[str, Tensor]:
        self.carried = joined(self.states)
        self.tokens += self.counted
        return self.processes.means(added(self.read))

    @property
    def progress(self) -> dict[str, float]:
        return {"train/tokens": self.tokens}

    def facts(self) -> dict[str, Any]:
        return {"tokens": self.tokens}

    def state_dict(self) -> dict[str, Any]:
        own = self._saved
        if self.carried is not None:
            # a slice would be saved together with the tensor that it is cut from
            own = self.carried.map(lambda t: t.cpu().clone()).to_dict()
        parts = self.processes.gather(own)
        return {"tokens": self.tokens, "carried": None if own is None else stacked(parts)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.tokens, carried = saved["tokens"], saved["carried"]
        self.carried = None
        self._saved = None if carried is None else some(carried, self.rows)


class TextEvaluator(Evaluator):
    """How well each token of the split's documents is predicted. Each document is read once.

    Checkpoints are ranked by the negative loss.
    """

    headline = "bits_per_byte"
    split: Held = "validation"

    def __init__(self, model: Model, task: TextTask, processes: Processes) -> None:
        super().__init__(metrics.of_text(task.segment_lengths[0], **processes.metric_options()), processes)
        self.model, self.task = model, task
        self.state: ModelState | None = None
        self.by_position: list[dict[str, Any]] = []

    def start(self, split: Held) -> None:
        super().start(split)
        self.split, self.state = split, None
        amounts = self.task.amounts(split)
        # these are for the whole split, so only one process adds them; another may have no document at all
        whole = amounts.whole if self.processes.leads else {}
        nothing = torch.zeros(0)
        self.metrics.update(nats=nothing, positions=nothing.long(), **whole)

    def read(self, batch: ReadingBatch) -> None:
        if not len(batch.tokens_BT):  # more processes than documents
            return
        resets = truncation.resets_of(batch.begins_BS)
        kept = text_nats(self.model, batch, truncation.plan(batch.segment_lengths, resets=resets), self.state)
        self.state = kept.state
        counts_BT = batch.counts_BT
        self.metrics.update(
            nats=kept.values[0][counts_BT].cpu(), positions=batch.positions()[counts_BT].cpu()
        )

    def finish(self) -> dict[str, float]:
        found = self.metrics.compute()
        self.by_position = found.pop("by_position")
        tokens, expected = sum(r["tokens"] for r in self.by_position), self.task.amounts(self.split).tokens
        if tokens != expected:
            raise RuntimeError(f"{tokens} tokens were read of the {expected} in {self.split}")
        return {name: float(value) for name, value in found.items()}

    def score(self, metrics: Mapping[str, float]) -> float:
        return -metrics["loss"]

    def facts(self) -> dict[str, Any]:
        if self.split != "test":
            return {}
        return {"test_read": self.task.amounts("test").read, "by_position": self.by_position}


def text_nats(
    model: Model, batch: ReadingBatch, calls: Sequence[truncation.Call], state: ModelState | None
) -> truncation.Kept:
    """Execute a plan and keep the nats of each target, [B, T], 0 where it does not count."""

    def keep(logits_BnV: Tensor, start: int) -> tuple[Tensor]:
        now = slice(start, start + logits_BnV.shape[1])
        nats_Bn = nats(logits_BnV, batch.targets_BT[:, now])
        return (torch.where(batch.counts_BT[:, now], nats_Bn, 0.0),)

    segments = batch.tokens_BT.split(list(batch.segment_lengths), dim=1)
    return truncation.run(model, segments, calls, keep, state, batch.begins_BS)


def joined(states: Sequence[ModelState]) -> ModelState:
    """The batch rows of several states, joined."""
    joined: ModelState = (
        states[0] if len(states) == 1 else pytree.tree_map(lambda *rows: torch.cat(rows), *states)
    )
    return joined


def stacked(parts: Sequence[Any]) -> Any:
    """`joined` for the results of `State.to_dict`."""
    return parts[0] if len(parts) == 1 else pytree.tree_map(lambda *rows: torch.cat(rows), *parts)


def some(saved: Any, rows: range) -> Any:
    """Some batch rows of such a result."""
    return pytree.tree_map(lambda t: t[rows.start : rows.stop].clone(), saved)
