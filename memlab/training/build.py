"""What a configuration describes, built: task, model, curriculum, module, and Lightning's Trainer. Nothing is written here."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger

from memlab import schema
from memlab.config import Config, GrowingCurriculum, build_task
from memlab.errors import ConfigError
from memlab.models.base import Encoder, Model
from memlab.tasks.base import SyntheticTask
from memlab.training.curriculum import Curriculum
from memlab.training.data import TrainingStream
from memlab.training.module import MemoryModule


@dataclass
class Parts:
    """What a configuration describes, built."""

    task: SyntheticTask
    model: Model
    curriculum: Curriculum
    stream: TrainingStream
    module: MemoryModule


def build(config: Config) -> Parts:
    """Build task, model and module from a configuration, with the weights that its seed gives.

    Raises:
        ConfigError: values that are possible one by one do not go together.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    model: Model = schema.load(config.model["_target_"])(vocab_size=task.vocab_size, **config.arguments("model"))
    if config.bptt_depth is not None and not model.carries:
        raise ConfigError(
            f"model.bptt_depth={config.bptt_depth}: {config.model['name']} as configured carries nothing between segments; use null"
        )
    answers_once = isinstance(model, Encoder)
    if answers_once and task.answer_tokens > 1:
        raise ConfigError(
            f"model={config.model['name']} answers once for each sample, and the answer of task={config.task['name']} as configured has "
            f"{task.answer_tokens} tokens; use a decoder, or a task with one answer token such as associative_retrieval"
        )
    if isinstance(config.curriculum, GrowingCurriculum):
        threshold = task.stage_threshold if config.curriculum.threshold is None else config.curriculum.threshold
        curriculum = Curriculum(task.stages(answers_once), threshold, config.curriculum.stage_steps)
    else:
        curriculum = Curriculum([task])
    stream = TrainingStream(curriculum, config.trainer.max_steps, config.seed)
    return Parts(task, model, curriculum, stream, MemoryModule(model, config, stream))


def trainer(config: Config, loggers: list[Logger], callbacks: list[L.Callback], **more: Any) -> L.Trainer:
    """Lightning's Trainer, as every command uses it; `more` are further arguments of it."""
    quiet()
    t = config.trainer
    return L.Trainer(
        accelerator=t.accelerator,
        devices=1,
        precision=t.precision,
        max_steps=t.max_steps,
        max_epochs=-1,
        val_check_interval=t.val_interval,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        gradient_clip_val=config.optim.gradient_clip,
        logger=loggers,
        callbacks=callbacks,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,  # nothing goes through Lightning's own logging, which would only warn of short runs
        **more,
    )


def quiet() -> None:
    """Leave out Lightning's hints and advertisements: what a person has to know is said by memlab itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 uses what torch 2.13 deprecates, and does not want a step for validation where a benchmark has none.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`", module="lightning.*")
