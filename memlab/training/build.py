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
from memlab.tasks.base import SyntheticTask, Task
from memlab.tasks.text import TextTask
from memlab.training.answering import AnsweringModule
from memlab.training.checkpoints import AtomicCheckpointIO
from memlab.training.curriculum import Curriculum
from memlab.training.data import EvaluationBatches, TextBatches, TextStream, TrainingStream
from memlab.training.module import MemoryModule
from memlab.training.reading import ReadingModule


@dataclass
class Parts:
    """What a configuration describes, built: the module, and the batches for its training, its validations and its one test."""

    task: Task
    model: Model
    module: MemoryModule
    stream: TrainingStream | TextStream
    validation: EvaluationBatches | TextBatches
    test: EvaluationBatches | TextBatches


def build(config: Config) -> Parts:
    """Build task, model and module from a configuration, with the weights that its seed gives.

    Raises:
        ConfigError: values that are possible one by one do not go together.
        UserError: what the task reads is not there, or cannot be read.
    """
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    task.prepare()
    model: Model = schema.load(config.model["_target_"])(vocab_size=task.vocab_size, **config.arguments("model"))
    if config.bptt_depth is not None and not model.carries:
        raise ConfigError(
            f"model.bptt_depth={config.bptt_depth}: {config.model['name']} as configured carries nothing between segments; use null"
        )
    if isinstance(task, TextTask):
        return _reading(config, task, model)
    assert isinstance(task, SyntheticTask)
    return _answering(config, task, model)


def _reading(config: Config, task: TextTask, model: Model) -> Parts:
    name, text = config.model["name"], config.task["name"]
    if isinstance(model, Encoder):
        raise ConfigError(f"model={name} answers once for each sample and does not predict text; task={text} needs a decoder")
    if model.keeps_everything:
        raise ConfigError(
            f"model={name} as configured keeps every token of a document, and the documents of task={text} are long; "
            "use model=transformer_xl with a long model.mem_len"
        )
    stream = TextStream(task, config.trainer.max_steps, config.seed)
    module = ReadingModule(model, config, stream)
    return Parts(task, model, module, stream, TextBatches(task, "validation"), TextBatches(task, "test"))


def _answering(config: Config, task: SyntheticTask, model: Model) -> Parts:
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
    module = AnsweringModule(model, config, stream)
    return Parts(task, model, module, stream, EvaluationBatches(curriculum, "validation"), EvaluationBatches(task, "test"))


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
        plugins=[AtomicCheckpointIO()],
        enable_checkpointing=False,  # Lightning's own callback; ours is `Checkpoints`
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,  # nothing goes through Lightning's own logging, which would only warn of short runs
        **more,
    )


def quiet() -> None:
    """Leave out Lightning's hints and advertisements: what a person has to know is said by memlab itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Lightning 2.6 uses what torch 2.13 deprecates, does not know that our streams begin where a checkpoint left them, and does not want a
    # step for validation where a benchmark has none.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended", module="lightning.*")
    warnings.filterwarnings("ignore", message="You defined a `validation_step` but have no `val_dataloader`", module="lightning.*")
