"""How good candidates for a policy are: a model reads samples with a bounded cache, many candidates at once.

    fitness = mean over tasks of (score / the full cache's score on the same samples) - penalty * cache share

A score is the share of answer tokens that are right, free-running. The cache share is the number of tokens
that are cached after a segment, over that of all tokens so far: the mean over segments, layers and heads.

Shapes: P candidates, n parameters, b samples, B = P * b batch rows (those of candidate 1 come first), F
frequencies, T tasks.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.evaluation import trained
from memlab.evaluation.memory import Watch
from memlab.evaluation.samples import PLAIN, read
from memlab.layers import observing
from memlab.memories.cached import CachedState
from memlab.models.base import Model
from memlab.policies.base import EMPTY
from memlab.policies.namm import NAMM
from memlab.splits import Split
from memlab.tasks.base import Batch
from memlab.tracking import finished_runs
from memlab.training.evolution import Floats, Measured
from memlab.training.evolve_settings import EvolveConfig, stage_tasks

_OTHER_SEEDS = 1 << 32  # added to the seed: no training reads these samples, whose seeds are smaller
_LEAST = 0.01  # of the full cache's score, which a score is divided by


@dataclass(frozen=True)
class Unit:
    """Samples that are read at once, by some candidates.

    Attributes:
        task: its number among the stages.
        candidates_Pn: None = everything is kept.
        standard_2F: mean and standard deviation of the spectra.
    """

    task: int
    split: Split
    seed: int
    start: int
    samples: int
    candidates_Pn: Floats | None
    standard_2F: Floats


@dataclass(frozen=True)
class Read:
    """What became of a unit: score and cache share of each candidate and sample."""

    score_Pb: Floats
    share_Pb: Floats


class ReadsUnits(Protocol):
    def read(self, units: Sequence[Unit]) -> list[Read]:
        """What became of each unit."""


class Reader:
    """A model with a bounded cache, and the tasks that it reads.

    Args:
        config: which run and which policy.

    Attributes:
        tasks: of the stages.
        sizes: of the policy.
        parameters_n, standard_2F: of the policy as configured: all 0 and not standardised, or those of its
            weights.

    Raises:
        UserError: the run cannot be opened, or its model cannot be read with a policy.
    """

    def __init__(self, config: EvolveConfig) -> None:
        device = trained.choose_device(config.accelerator)
        if config.untrained is not None:
            run = trained.fresh(config.untrained, device, policy=config.policy)
        else:
            assert config.run is not None  # or `untrained`
            found = finished_runs.find(config.run, getattr(config.tracking, "uri", "sqlite:///mlflow.db"))
            run = trained.load(found, device, trusted=config.trust, policy=config.policy)
        self.tasks = stage_tasks(config, run.config.task)
        for task in self.tasks:
            task.prepare()
            if task.vocab_size > run.task.vocab_size:
                raise ConfigError(
                    f"run={run.found.directory}: the model knows {run.task.vocab_size} tokens, and the "
                    f"task has {task.vocab_size}"
                )
        self.model = run.model
        self.name, self.own_task = run.config.model["name"], run.config.task
        policy = self.policies[0]
        self.sizes, self.parameters_n = policy.sizes, policy.parameters_Pn[0].double().cpu().numpy()
        self.standard_2F = torch.stack([policy.mean_F, policy.std_F]).double().cpu().numpy()

    @property
    def policies(self) -> list[NAMM]:
        return [module for module in self.model.modules() if isinstance(module, NAMM)]

    def read(self, unit: Unit) -> Read:
        """Read the samples of a unit."""
        candidates = 1 if unit.candidates_Pn is None else len(unit.candidates_Pn)
        batch = self.tasks[unit.task].batch(unit.split, unit.start, unit.samples, unit.seed)
        watch = _Shares(self.model)
        with self.holding(unit):
            answers = read(self.model, repeated(batch, candidates), (PLAIN,), watch)[PLAIN]
        score_Pb = np.array(answers.free, dtype=np.float64).reshape(candidates, -1) / answers.tokens
        return Read(score_Pb, watch.mean().double().cpu().numpy().reshape(candidates, -1))

    def spectra(self, unit: Unit) -> Floats:
        """Mean and standard deviation of each frequency while everything is kept, [2, F].

        Over decisions, samples, layers, heads and tokens.
        """
        sums: list[Tensor] = []

        def see(event: str, values: Mapping[str, Any]) -> None:
            if event == "spectrum":
                x_NF = values["mean"][values["filled"]].double()
                sums.append(
                    torch.stack([torch.ones_like(x_NF[0]) * len(x_NF), x_NF.sum(0), (x_NF**2).sum(0)])
                )

        with observing.by(see):
            self.read(dataclasses.replace(unit, candidates_Pn=None))
        count, total, squares = torch.stack(sums).sum(0)
        mean = total / count
        return torch.stack([mean, (squares / count - mean**2).clamp(min=0).sqrt()]).cpu().numpy()

    @contextlib.contextmanager
    def holding(self, unit: Unit) -> Iterator[None]:
        """The policies with a unit's candidates, or with all parameters 0 and no budget."""
        device, before = self.model.device, [(p.select, p.budget) for p in self.policies]
        mean_F, std_F = torch.from_numpy(unit.standard_2F).to(device)
        everything = unit.candidates_Pn is None
        chosen_Pn = np.zeros((1, self.sizes.parameters)) if unit.candidates_Pn is None else unit.candidates_Pn
        parameters_Pn = torch.from_numpy(chosen_Pn).to(device)
        try:
            for policy in self.policies:
                policy.mean_F, policy.std_F, policy.parameters_Pn = mean_F, std_F, parameters_Pn
                if everything:
                    policy.select, policy.budget = "threshold", 1.0
            yield
        finally:
            for policy, (select, budget) in zip(self.policies, before, strict=True):
                policy.select, policy.budget = select, budget


def repeated(batch: Batch, times: int) -> Batch:
    """All samples, one time after another."""

    def tile(x: Any) -> Any:
        return np.tile(x, (times, 1))

    return dataclasses.replace(
        batch,
        tokens_BT=tile(batch.tokens_BT),
        targets_BT=tile(batch.targets_BT),
        answer_BT=tile(batch.answer_BT),
    )


class _Shares(Watch):
    """The cache share of each batch row, at every segment."""

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.shares: list[Tensor] = []

    def points(self, segment_lengths: Sequence[int]) -> set[int]:
        return set(range(len(segment_lengths)))

    def see(self, tokens_BN: Tensor, state: Any, segment: int) -> None:
        """Nothing is to be measured before a segment."""

    def seen(self, state: Any, segment: int) -> None:
        layers = [layer for layer in state.layers if isinstance(layer, CachedState)]
        of_layers = [(s.position_BGC != EMPTY).double().sum(-1).mean(-1) / s.length_B for s in layers]
        self.shares.append(torch.stack(of_layers).mean(0))

    def mean(self) -> Tensor:
        """[B]."""
        return torch.stack(self.shares).mean(0)


@dataclass(frozen=True)
class Scores:
    """What became of some candidates on some samples.

    Attributes:
        fitness_P, share_P: of each candidate.
        score_TP, full_T: mean scores of the candidates, and of the full cache.
    """

    fitness_P: Floats
    share_P: Floats
    score_TP: Floats
    full_T: Floats


class Population:
    """Measures candidates.

    Args:
        readers: read the samples.
        config: of the evolution.
        standard_2F: see `Unit`.
    """

    def __init__(self, readers: ReadsUnits, config: EvolveConfig, standard_2F: Floats) -> None:
        self.readers, self.config, self.standard_2F = readers, config, standard_2F

    def __call__(self, candidates_Pn: Floats, generation: int) -> Measured:
        """Fitness on the samples of a generation, which no other generation reads."""
        tasks, prompts = self.config.stage(generation) + 1, self.config.prompts
        scores = self.measure(candidates_Pn, tasks, "train", generation * prompts, prompts)
        best = int(scores.fitness_P.argmax())
        figures = {
            "evolve/best": float(scores.fitness_P[best]),
            "evolve/mean": float(scores.fitness_P.mean()),
            "evolve/worst": float(scores.fitness_P.min()),
            "evolve/score": float(scores.score_TP.mean()),
            "evolve/full_score": float(scores.full_T.mean()),
            "evolve/cache_share": float(scores.share_P.mean()),
            "evolve/cache_share_best": float(scores.share_P[best]),
            "evolve/stage": float(tasks),
        }
        return Measured(scores.fitness_P, figures)

    def measure(self, candidates_Pn: Floats, tasks: int, split: Split, start: int, samples: int) -> Scores:
        """Read the same samples of each of the first tasks with all candidates and with the full cache."""
        full = self.units(tasks, split, start, samples)
        each = max(1, self.config.rows // full[0].samples)  # candidates in a unit
        parts_Pn = [candidates_Pn[first : first + each] for first in range(0, len(candidates_Pn), each)]
        units = [dataclasses.replace(unit, candidates_Pn=part) for unit in full for part in parts_Pn]
        reads = self.readers.read([*full, *units])
        full_T = np.concatenate([r.score_Pb[0] for r in reads[: len(full)]]).reshape(tasks, -1).mean(1)
        by_samples = [
            reads[first : first + len(parts_Pn)] for first in range(len(full), len(reads), len(parts_Pn))
        ]
        score_PN = np.hstack([np.vstack([r.score_Pb for r in parts]) for parts in by_samples])
        share_P = np.hstack([np.vstack([r.share_Pb for r in parts]) for parts in by_samples]).mean(1)
        score_TP = score_PN.reshape(len(candidates_Pn), tasks, samples).mean(2).T
        fitness_P = (score_TP / np.maximum(full_T, _LEAST)[:, None]).mean(
            0
        ) - self.config.size_penalty * share_P
        return Scores(fitness_P, share_P, score_TP, full_T)

    def units(self, tasks: int, split: Split, start: int, samples: int) -> list[Unit]:
        """Samples of each of the first tasks, with everything kept."""
        seed, most = _OTHER_SEEDS + self.config.seed, self.config.rows
        return [
            Unit(task, split, seed, start + first, min(most, samples - first), None, self.standard_2F)
            for task in range(tasks)
            for first in range(0, samples, most)
        ]
