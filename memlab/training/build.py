"""Build what a configuration describes: task, model, curriculum, module, and Lightning's Trainer.

Nothing is written here.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import DDPStrategy

from memlab import ram
from memlab.config import schema, trust
from memlab.config.checks import build_task, check_shares, check_vocabulary
from memlab.config.launch import Place
from memlab.config.sections import Config, GrowingCurriculum
from memlab.errors import ConfigError
from memlab.models import trainable
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.pretrained.describing import identity_of
from memlab.models.pretrained.loading import check_room, load
from memlab.tasks import growth
from memlab.tasks.base import Task
from memlab.training import answers, random_state, sharding, text
from memlab.training.checkpoints import AtomicCheckpointIO
from memlab.training.curriculum import Curriculum
from memlab.training.module import TrainingModule
from memlab.training.parts import Stream, Training
from memlab.training.processes import Processes, Started
from memlab.training.sharding import ShardedStrategy

# Functions that make the parts of a training, by `Task.trained_by`, which may also be a function's dotted
# name.
TRAINED_BY: dict[str, Callable[..., Training]] = {"answers": answers.training, "text": text.training}


_KEPT = 4  # rows of the model's width, of each token in each layer: the least that we measured is 4.6


@dataclass
class Parts:
    """What `build` makes: task, model, module, and the batches for training, validation and the one test."""

    task: Task
    model: Model
    module: TrainingModule
    stream: Stream
    validation: Iterable[Any]
    test: Iterable[Any]


def build(config: Config, processes: Processes | None = None) -> Parts:
    """Build task, model and module from a configuration, with the initial weights of its seed.

    Args:
        processes: the processes that train together; None = only this one.

    Raises:
        ConfigError: the values are valid one by one but do not go together.
        UserError: what the task reads is missing, or cannot be read.
    """
    processes = Processes() if processes is None else processes
    L.seed_everything(config.seed, workers=True, verbose=False)
    task = build_task(config)
    check_shares(config, task, processes.size)
    task.prepare()
    check_vocabulary(config, task)
    pretrained = identity_of(config.model) is not None
    if pretrained:
        _check_pretrained(config)
    model = compose(config.model, task.vocab_size, task.members)
    _check_room(config, task, model, processes)
    if pretrained:
        load(model, config.model)
    trainable.choose(model, config.trainer.train, **config.lora.model_dump())
    if config.bptt_depth is not None and not model.sends_gradient:
        what = (
            "carries nothing between segments" if not model.carries else "cuts the gradient between segments"
        )
        raise ConfigError(
            f"model.bptt_depth={config.bptt_depth}: {config.model['name']} as configured {what}; use null"
        )
    if config.trainer.precision == "64-true":
        # Lightning does this too, but only after loading a checkpoint, whose weights it would have rounded
        model = model.double()
    model.backbone.recompute = config.trainer.recompute == "block"
    if processes.rank:
        random_state.begin(config.seed, processes.rank, 0)
    made = _maker(task)(config, task, model, _curriculum(config, task, model.answers_once), processes)
    if not isinstance(made, Training):
        raise ConfigError(f"trained_by={task.trained_by} returns no memlab.training.parts.Training")
    module = TrainingModule(model, config, made, processes)
    return Parts(task, model, module, made.stream, made.validation, made.test)


def _maker(task: Task) -> Callable[..., Training]:
    """The function that makes the parts of a task's training.

    Raises:
        ConfigError: the task names one in a module that nobody has allowed.
    """
    if (make := TRAINED_BY.get(task.trained_by)) is not None:
        return make
    if task.trained_by.partition(".")[0] != type(task).__module__.partition(".")[0]:
        trust.check("trained_by", task.trained_by)
    found: Callable[..., Training] = schema.load(task.trained_by)
    return found


def _check_pretrained(config: Config) -> None:
    """Refuse pretrained weights that cannot be trained as configured, before they are read.

    Raises:
        ConfigError: they cannot.
    """
    if config.model["dtype"] != "float32":
        raise ConfigError(
            f"backbone.dtype={config.model['dtype']}: weights that are trained are float32; "
            "trainer.precision=bf16-mixed computes in a narrower type, 64-true in a wider one"
        )
    check_room(config.model, copies=4 if config.trainer.train == "all" else 1)


def _check_room(config: Config, task: Task, model: Model, processes: Processes) -> None:
    """Refuse a training step that cannot fit into memory.

    Counted is only what every model keeps for the gradient; a step needs up to four times as much. A model
    that carries nothing only reads the segments with targets, which may be a single one.

    Raises:
        ConfigError: this alone is too large.
    """
    trainer = config.trainer
    rows = task.batch_size // processes.size // trainer.accumulate
    depth = task.num_segments if config.bptt_depth is None else config.bptt_depth + 1
    together = trainer.recompute == "none" and model.carries
    tokens = max(task.segment_lengths) * (depth if together else 1)
    kept = 1 if trainer.recompute == "block" else _KEPT
    number = {"64": 8, "32": 4}.get(trainer.precision[:2], 2)  # bytes
    # an own backbone may be described by other keys
    needed = rows * tokens * kept * number * config.model.get("width", 1) * config.model.get("layers", 1)
    here, free = processes.place.local_size, None
    if on_gpu(config):
        here, free = 1, torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    ram.check(
        needed * here,
        f"task.batch_size={task.batch_size}: a training step",
        "use fewer rows, shorter segments, trainer.accumulate, or a shorter model.bptt_depth",
        free,
    )


def _curriculum(config: Config, task: Task, answers_once: bool) -> Curriculum:
    wish = config.curriculum
    if not isinstance(wish, GrowingCurriculum):
        return Curriculum([task])
    stages = growth.stages(task, wish.by, wish.sizes, answers_once)
    threshold = task.stage_threshold if wish.threshold is None else wish.threshold
    return Curriculum(stages, threshold, wish.stage_steps, wish.mixed, config.seed)


def trainer(
    config: Config,
    loggers: list[Logger],
    callbacks: list[L.Callback],
    processes: Processes | None = None,
    **more: Any,
) -> L.Trainer:
    """Lightning's Trainer, as every command uses it; `more` are further arguments for it."""
    quiet()
    t = config.trainer
    place = Place() if processes is None else processes.place
    # without `Started`, Lightning would ask SLURM or LSF which process this is
    plugins: list[Any] = [AtomicCheckpointIO(), Started(place)]
    if processes is not None and processes.size > 1:
        more |= {"num_nodes": place.nodes, "use_distributed_sampler": False}
        # Which parameters take part in a step depends on the curriculum's stage and on where documents begin
        # (a learned initial memory), so DDP looks for them in each step. A parameter that takes part in no
        # process has no gradient, as with one process.
        sharded = sharding.asked_for(t, processes)
        more["strategy"] = ShardedStrategy() if sharded else DDPStrategy(find_unused_parameters=True)
        if sharded:
            # weights that are gathered for a validation are used in the steps after it
            more["inference_mode"] = False
    return L.Trainer(
        accelerator="gpu" if on_gpu(config) else "cpu",
        devices=place.local_size,
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
        enable_checkpointing=False,  # this is Lightning's own callback; ours is `Checkpoints`
        enable_progress_bar=False,
        enable_model_summary=False,
        # nothing goes through Lightning's own logging, which would only warn about short runs
        log_every_n_steps=1,
        **more,
    )


def on_gpu(config: Config) -> bool:
    """Whether this configuration trains on GPUs on this machine."""
    accelerator = config.trainer.accelerator
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def quiet() -> None:
    """Silence Lightning's hints and advertisements: memlab itself reports what users have to know."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    # Each process logs what all of them measured together, so there is nothing to sync.
    warnings.filterwarnings("ignore", message="It is recommended to use `self.log", module="lightning.*")
    # Lightning 2.6 uses functions that torch 2.13 deprecates, does not know that our streams continue where a
    # checkpoint left them, and warns about a validation step without validation batches, as in a benchmark.
    warnings.filterwarnings("ignore", message=".*LeafSpec.*", module="lightning.*")
    warnings.filterwarnings(
        "ignore",
        message="You're resuming from a checkpoint that ended before the epoch ended",
        module="lightning.*",
    )
    warnings.filterwarnings(
        "ignore", message="You defined a `validation_step` but have no `val_dataloader`", module="lightning.*"
    )
