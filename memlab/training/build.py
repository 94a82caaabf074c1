"""What a configuration describes, built: task, model, curriculum, module, and Lightning's Trainer.

Nothing is written here.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from memlab.config.checks import build_task, check_shares
from memlab.config.sections import Config, GrowingCurriculum
from memlab.errors import ConfigError
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.tasks import growth
from memlab.tasks.base import SyntheticTask, Task
from memlab.tasks.text import TextTask
from memlab.training import random_state
from memlab.training.answering import AnsweringModule
from memlab.training.checkpoints import AtomicCheckpointIO
from memlab.training.curriculum import Curriculum
from memlab.training.data import EvaluationBatches, TextBatches, TextStream, TrainingStream
from memlab.training.module import MemoryModule
from memlab.training.processes import Processes, Started
from memlab.training.reading import ReadingModule
from memlab.training.sharding import ShardedStrategy


@dataclass
class Parts:
    """What a configuration describes, built: the module, and the batches for its training,
    its validations and its one test.
    """

    task: Task
    model: Model
    module: MemoryModule
    stream: TrainingStream | TextStream
    validation: EvaluationBatches | TextBatches
    test: EvaluationBatches | TextBatches


def build(config: Config, processes: Processes | None = None) -> Parts:
    """Build task, model and module from a configuration, with the weights that its seed gives.

    Args:
        processes: those that train together; None = this one alone.

    Raises:
        ConfigError: values that are possible one by one do not go together.
        UserError: what the task reads is not there, or cannot be read.
    """
    processes = Processes() if processes is None else processes
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    check_shares(config, task, processes.size)
    task.prepare()
    model = compose(config.model, task.vocab_size)
    if config.bptt_depth is not None and not model.carries:
        raise ConfigError(
            f"model.bptt_depth={config.bptt_depth}: {config.model['name']} as configured carries nothing "
            "between segments; use null"
        )
    if config.trainer.precision == "64-true":
        # Lightning does so too, but behind a checkpoint, whose weights it would have rounded
        model = model.double()
    model.backbone.recompute = config.trainer.recompute == "block"
    if processes.rank:
        random_state.begin(config.seed, processes.rank, 0)
    if isinstance(task, TextTask):
        return _reading(config, task, model, processes)
    assert isinstance(task, SyntheticTask)
    return _answering(config, task, model, processes)


def _reading(config: Config, task: TextTask, model: Model, processes: Processes) -> Parts:
    name, text = config.model["name"], config.task["name"]
    if model.answers_once:
        raise ConfigError(
            f"model={name} answers once for each sample and does not predict text; task={text} needs a "
            "decoder"
        )
    if model.keeps_everything:
        raise ConfigError(
            f"model={name} as configured keeps every token of a document, and the documents of task={text} "
            "are long; use model=transformer_xl with a long model.mem_len"
        )
    stream = TextStream(_curriculum(config, task), config.trainer.max_steps, config.seed, processes)
    module = ReadingModule(model, config, stream, processes)
    return Parts(
        task,
        model,
        module,
        stream,
        TextBatches(task, "validation", processes),
        TextBatches(task, "test", processes),
    )


def _answering(config: Config, task: SyntheticTask, model: Model, processes: Processes) -> Parts:
    answers_once = model.answers_once
    if answers_once and task.answer_tokens > 1:
        raise ConfigError(
            f"model={config.model['name']} answers once for each sample, and the answer of "
            f"task={config.task['name']} as configured has {task.answer_tokens} tokens; use a decoder, or a "
            "task with one answer token such as associative_retrieval"
        )
    curriculum = _curriculum(config, task, answers_once)
    validation, test = (
        EvaluationBatches(curriculum, "validation", processes),
        EvaluationBatches(task, "test", processes),
    )
    stream = TrainingStream(curriculum, config.trainer.max_steps, config.seed, processes)
    return Parts(task, model, AnsweringModule(model, config, stream, processes), stream, validation, test)


def _curriculum(config: Config, task: Task, answers_once: bool = False) -> Curriculum:
    wish = config.curriculum
    if not isinstance(wish, GrowingCurriculum):
        return Curriculum([task])
    stages = growth.stages(task, wish.by, wish.sizes, answers_once)
    threshold = (
        task.stage_threshold if wish.threshold is None and isinstance(task, SyntheticTask) else wish.threshold
    )
    return Curriculum(stages, threshold, wish.stage_steps, wish.mixed, config.seed)


def trainer(
    config: Config,
    loggers: list[Logger],
    callbacks: list[L.Callback],
    processes: Processes | None = None,
    **more: Any,
) -> L.Trainer:
    """Lightning's Trainer, as every command uses it; `more` are further arguments of it."""
    quiet()
    t = config.trainer
    plugins: list[Any] = [AtomicCheckpointIO()]
    if processes is not None and processes.size > 1:
        place = processes.place
        plugins.append(Started(place))
        more |= {"num_nodes": place.nodes, "use_distributed_sampler": False}
        # Which parameters take part in a step depends on the curriculum's stage and on where documents begin
        # (a learned initial memory), so they are looked for in each. One that takes part in no process has no
        # gradient, as in one process.
        more["strategy"] = (
            ShardedStrategy() if t.strategy == "fsdp" else DDPStrategy(find_unused_parameters=True)
        )
        if t.strategy == "fsdp":
            # weights that are gathered in a validation are used in the steps behind it
            more["inference_mode"] = False
    return L.Trainer(
        accelerator="gpu" if on_gpu(config) else "cpu",
        devices=1 if processes is None else processes.place.local_size,
        precision=t.precision,
        max_steps=t.max_steps,
        max_epochs=-1,
        val_check_interval=t.val_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=config.optim.gradient_clip,
        logger=loggers,
        callbacks=callbacks,
        plugins=plugins,
        enable_checkpointing=False,  # Lightning's own callback; ours is `Checkpoints`
        enable_progress_bar=False,
        enable_model_summary=False,
        # nothing goes through Lightning's own logging, which would only warn of short runs
        log_every_n_steps=1,
        **more,
    )


def on_gpu(config: Config) -> bool:
    """Whether this configuration trains on GPUs, here."""
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def quiet() -> None:
    """Leave out Lightning's hints and advertisements: what a person has to know is said by memlab itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Each process logs what all of them measured together, so there is nothing to sync.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log", module="lightning.*")
    # Lightning 2.6 uses what torch 2.13 deprecates, does not know that our streams begin where a checkpoint
    # left them, and does not want a step for validation where a benchmark has none.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    warnings.filterwarnings(
        "ignore",
        message="You're resuming from a checkpoint that ended before the epoch ended",
        module="lightning.*",
    )
    warnings.filterwarnings(
        "ignore", message="You defined a `validation_step` but have no `val_dataloader`", module="lightning.*"
    )
