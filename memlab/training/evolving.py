"""One evolution from configuration to result: begin or continue, evolve, test the mean, write the result."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from memlab.config.sections import MLflowTracking
from memlab.evaluation import memory
from memlab.policies.namm_weights import FILE, NAMMWeights
from memlab.splits import Split
from memlab.tracking import mlflow_store, provenance, resume
from memlab.tracking.checkpoint_file import LAST
from memlab.tracking.jsonl import JsonlLogger, read_metrics
from memlab.tracking.mlflow_store import Tracker
from memlab.tracking.run_directory import RunDirectory
from memlab.tracking.versions import versions
from memlab.training import checkpoints, directory, mlflow_run
from memlab.training.checkpoints import AtomicCheckpointIO
from memlab.training.evolution import Floats, Measured, Sampler, evolve
from memlab.training.evolution_report import Report, print_result
from memlab.training.evolve_settings import EvolveConfig
from memlab.training.population import Population, Scores, Unit
from memlab.training.readers import Readers
from memlab.training.signals import Ended, Signals
from memlab.version import __version__


def run(config: EvolveConfig, arguments: Sequence[str] = ()) -> dict[str, Any]:
    """Evolve as configured, from the beginning or from where it was stopped; the content of `result.json`.

    Args:
        arguments: the command line after `memlab.evolve`, from which the command that continues is made.

    Raises:
        UserError: the configuration or the run directory cannot be used, or a worker was ended.
        SystemExit: the evolution was asked to end; all generations before are in the run directory.
    """
    began = time.perf_counter()
    origin = resume.find(config)
    if origin.directory is not None and origin.result is not None:
        print(f"memlab: the evolution in {origin.directory} has finished already", file=sys.stderr)
        print_result(origin.result, origin.directory)
        return origin.result
    continues, how = origin.directory is not None, ""
    try:
        with Signals() as signals, Readers(config) as readers:
            if isinstance(config.tracking, MLflowTracking):
                mlflow_store.prepare(config.tracking.uri, config.tracking.experiment)
            place = RunDirectory(origin.directory or config.run_dir, config, continues)
            how = directory.command(arguments, place.path, "evolve")
            try:
                return _Evolving(config, readers, place, signals, began).run(how, continues)
            finally:
                place.release()
    except Ended as ended:
        if how:
            print(f"\nmemlab: {ended.signal.name}: continue with: {how}", file=sys.stderr)
        raise SystemExit(128 + ended.signal) from None


class _Evolving:
    """An evolution in a directory that this process owns."""

    def __init__(
        self, config: EvolveConfig, readers: Readers, place: RunDirectory, signals: Signals, began: float
    ) -> None:
        self.config, self.readers, self.place, self.signals = config, readers, place, signals
        self.sizes = readers.here.sizes
        self.began, self.spent = began, 0.0  # seconds before, by earlier processes
        self.standard_2F, mean_n = readers.here.standard_2F, readers.here.parameters_n.copy()
        if config.policy["weights"] is None:
            mean_n[-1] = config.bias  # of the score
        self.sampler = Sampler(mean_n, config.sigma, config.population, config.seed, config.sampler)
        self.task = readers.here.tasks[-1]
        self.task_name = str((config.task or readers.here.own_task)["name"])

    def run(self, how: str, continues: bool) -> dict[str, Any]:
        self.signals.held = True
        self._begin(how, continues)
        tracker = self._tracker(how)
        loggers = [JsonlLogger(self.place.metrics), *([tracker] if tracker else [])]
        print(
            f"memlab: {self.config.policy['name']}, {self.sizes.parameters:,} parameters, evolves on "
            f"{self.readers.here.name} and {self.task_name}, in {self.place.path}",
            file=sys.stderr,
        )
        with mlflow_run.ending(tracker):
            self.signals.leave_if_asked()
            result = self._evolve(loggers, tracker)
        print_result(result, self.place.path)
        return result

    def _begin(self, how: str, continues: bool) -> None:
        """From the last generation that was saved, or before the first one."""
        found = checkpoints.newest(self.place.checkpoints) if continues else None
        self.place.forget_after(found[1]["metrics_bytes"] if found else 0)
        self.place.note(command=how)
        if found is None:
            if self.config.policy["weights"] is None:
                self.standard_2F = self.readers.here.spectra(self._unit())
            return
        saved = found[1]
        self.sampler.load_state_dict(saved["sampler"])
        self.standard_2F = saved["standard_2F"].numpy()
        self.spent, self.readers.tokens = saved["seconds"], saved["tokens"]
        self.place.note(resumed_at=[*self.place.facts()["resumed_at"], self.sampler.generation])
        print(f"memlab: the evolution continues after generation {self.sampler.generation}", file=sys.stderr)

    def _tracker(self, how: str) -> Tracker | None:
        """The MLflow run, begun or continued."""
        tracking, known = self.config.tracking, self.place.facts()["mlflow_run_id"]
        if not isinstance(tracking, MLflowTracking):
            return None
        uri = mlflow_store.absolute_uri(tracking.uri)
        if known is not None and not mlflow_store.holds(uri, known):
            known = None
        tags = {
            "memlab.policy": self.config.policy["name"],
            "memlab.task": self.task_name,
            "memlab.seed": str(self.config.seed),
            "memlab.run_dir": str(self.place.path),
            "memlab.command": how,
            "mlflow.source.name": "memlab.evolve",
            "mlflow.source.git.commit": provenance.commit() or "",
        }
        name = f"{self.config.policy['name']}-{self.task_name}-{self.config.seed}"
        parameters = self.config.model_dump()
        tracker = Tracker(uri, tracking.experiment, name, parameters, tags, known, tracking.parent_run)
        self.place.note(mlflow_run_id=tracker.run_id)
        tracker.log_artifact(self.place.path / "config.yaml", "config")
        if self.place.metrics.exists():
            tracker.log_lines(read_metrics(self.place.metrics))
        return tracker

    def _unit(self) -> Unit:
        """The first samples of the first task."""
        return self._population().units(1, "train", 0, self.config.prompts)[0]

    def _population(self) -> Population:
        return Population(self.readers, self.config, self.standard_2F)

    def _evolve(self, loggers: list[Any], tracker: Tracker | None) -> dict[str, Any]:
        population, ends = self._population(), self.config.ends
        report = Report(ends[-1], self.sampler.generation)

        def after(generation: int, measured: Measured) -> None:
            line = {**measured.figures, "evolve/sigma": self.sampler.sigma, "evolve/seconds": self.seconds()}
            if generation % self.config.dev_every == 0 or generation in (1, ends[-1]):
                line |= self._of_mean("dev", population, "validation", self.config.dev_prompts, generation)
            for logger in loggers:
                logger.log_metrics(line, step=generation)
            self._save()
            report.generation(generation, line)
            self.signals.leave_if_asked()

        with report:
            mean_n = evolve(self.sampler, population, ends[-1], after)
        evolved = self.seconds()
        metrics: dict[str, float] = {}
        if self.config.test_prompts is not None:
            metrics = self._of_mean("test", population, "test", self.config.test_prompts, ends[-1])
        return self._finish(mean_n, metrics, evolved, tracker)

    def _of_mean(
        self, name: str, population: Population, split: Split, samples: int, generation: int
    ) -> dict[str, float]:
        """What the mean of the candidates has come to on samples that the evolution does not read."""
        tasks = self.config.stage(generation - 1) + 1
        scores: Scores = population.measure(self.sampler.mean_n[None], tasks, split, 0, samples)
        return {
            f"{name}/accuracy": float(scores.score_TP.mean()),
            f"{name}/full_accuracy": float(scores.full_T.mean()),
            f"{name}/fitness": float(scores.fitness_P[0]),
            f"{name}/cache_share": float(scores.share_P[0]),
        }

    def _save(self) -> None:
        self.place.checkpoints.mkdir(exist_ok=True)
        saved = {
            "memlab": {"version": __version__},
            "sampler": self.sampler.state_dict(),
            "standard_2F": torch.from_numpy(self.standard_2F),
            "seconds": self.seconds(),
            "tokens": self.readers.tokens,
            "metrics_bytes": self.place.metrics.stat().st_size,
        }
        AtomicCheckpointIO().save_checkpoint(saved, self.place.checkpoints / LAST)

    def seconds(self) -> float:
        """Since the beginning, in all processes that worked on it one after another."""
        return self.spent + time.perf_counter() - self.began

    def _finish(
        self, mean_n: Floats, metrics: dict[str, float], evolved: float, tracker: Tracker | None
    ) -> dict[str, Any]:
        mean_F, std_F = torch.from_numpy(self.standard_2F).float()
        NAMMWeights(self.sizes, mean_F, std_F, torch.from_numpy(mean_n).float()).write(self.place.path / FILE)
        unit = dataclasses.replace(self._unit(), candidates_Pn=mean_n[None])
        with self.readers.here.holding(unit):
            cost = memory.measure(self.readers.here.model, self.task.typical_segments())
        lines = read_metrics(self.place.metrics)
        dev = next((line for line in reversed(lines) if "dev/accuracy" in line), {})
        result = {
            "status": "finished",
            "model": self.readers.here.name,
            "task": self.task_name,
            "policy": self.config.policy["name"],
            "run": self.config.run,
            "seed": self.config.seed,
            "metrics": metrics | {name: value for name, value in dev.items() if name.startswith("dev/")},
            "memory": cost.to_dict(),
            "timing": {
                "evolve_seconds": evolved,
                "total_seconds": self.seconds(),
                "tokens_per_second": self.readers.tokens / self.seconds(),
            },
            "generations": self.sampler.generation,
            "population": self.config.population,
            "parameters": self.sizes.parameters,
            "tokens_read": self.readers.tokens,
            "resumed_at": self.place.facts()["resumed_at"],
            "command": self.place.facts()["command"],
            "versions": versions(),
            "commit": provenance.commit(),
            "hardware": provenance.hardware(),
            "mlflow_run_id": tracker.run_id if tracker else None,
        }
        if tracker:
            tracker.log_metrics(metrics, step=self.sampler.generation)
            tracker.log_artifact(self.place.path / FILE, "policy")
        self.place.write_result(result)
        return result
