"""Open a trained run: its configuration, its task, and its model with the weights of a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memlab.config import foreign, trust
from memlab.config.checks import build_task, check, check_vocabulary
from memlab.config.sections import Config
from memlab.errors import ConfigError, UserError, first_line
from memlab.files import check_place, write_whole
from memlab.layers import low_rank
from memlab.models import choices, trainable
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.pretrained import loading as pretrained
from memlab.models.pretrained.describing import identity_of
from memlab.tasks.base import Task
from memlab.tasks.text import TextTask
from memlab.terminal.plain import printable
from memlab.tracking import checkpoint_file, data_record, earlier
from memlab.tracking.finished_runs import Found
from memlab.version import __version__


@dataclass(frozen=True)
class Trained:
    """A run that can be evaluated.

    Attributes:
        policy: what its layers with full attention are read with, instead of how they were trained: the
            policy's name and all of its options; None = as trained.
        task: prepared.
        model: in evaluation mode, on its device.
        step: optimizer steps before the checkpoint was written.
    """

    found: Found
    config: Config
    task: Task
    model: Model
    step: int
    policy: dict[str, Any] | None = None

    @property
    def trained(self) -> bool:
        """Whether a run has trained it; otherwise it is a pretrained model as it is."""
        return self.found.checkpoint.name != checkpoint_file.PRETRAINED


def choose_device(accelerator: str) -> torch.device:
    """Where a run is opened: cpu, gpu, or auto, which is the GPU if there is one.

    Raises:
        UserError: a GPU is asked for, and there is none.
    """
    if accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("accelerator=gpu: torch sees no GPU; use accelerator=cpu")
    return torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")


def load(
    found: Found,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
    trusted: str | Sequence[str] = (),
    policy: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
) -> Trained:
    """Open a run.

    Args:
        changes: changed values of its task's configuration; values of None and keys that the task does not
            have are ignored.
        trusted: modules that the run may name, in addition to those that the command allows.
        policy: reads layers with full attention through a bounded cache: `name` and options of a policy;
            None = as trained.
        backbone: where the pretrained weights are, beside which the run was trained; None = where they were.

    Raises:
        UserError: its checkpoint is damaged or of another version of memlab, what its task reads is missing,
            it names a module that nobody has allowed (see `memlab.config.trust`), there is a policy and no
            layer for it, or its pretrained backbone is missing or another one.
    """
    file = found.checkpoint
    try:
        checkpoint = checkpoint_file.read(file)
    except checkpoint_file.DamagedError as error:
        raise UserError(f"{file} is damaged ({error})") from None
    with trust.allowing(trusted):
        config = _configuration(found, checkpoint)
    config = _changed(config, changes)
    saved, step = checkpoint.get("state_dict"), checkpoint.get("global_step")
    if not isinstance(saved, Mapping) or not isinstance(step, int):
        raise UserError(f"{file} is damaged (it has no weights, or does not say of which step they are)")
    task = build_task(config)
    task.prepare()
    check_vocabulary(config, task)
    if (changes or {}).get("data_dir") is None:  # else the user asks for another text
        data_record.warn(found.directory, task.data())
    values = config.model if policy is None else choices.bounded(config.model, policy)
    model = compose(values, task.vocab_size, task.members)
    _begin(model, config, file, backbone)
    if config.trainer.precision == "64-true":
        model = model.double()
    weights = {str(name).removeprefix("model."): value for name, value in saved.items()}
    base = model.state_dict()
    weights |= {name: base[name] for name in trainable.left_out(model, config.model)}
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError, AttributeError) as error:
        wrong = " ".join(str(error).split()).partition(": ")[2][:200]
        raise UserError(f"{_version(file, checkpoint)}, and its weights do not fit: {wrong}") from None
    low_rank.merge(model)  # so that nothing that reads the model has to know of adapters
    return Trained(
        found, config, task, model.to(device).eval(), step, None if policy is None else dict(policy)
    )


def _begin(model: Model, config: Config, file: Path, backbone: str | Path | None) -> None:
    """Prepare a model for the weights of a checkpoint: adapters, and the backbone that it leaves out."""
    train, identity = config.trainer.train, identity_of(config.model)
    if train != "all" and identity is not None:
        try:
            pretrained.load(model, {**config.model, "path": str(backbone or identity.path)})
        except ConfigError as error:
            raise UserError(
                f"{file} holds what was trained beside a pretrained backbone ({identity.family}, "
                f"{identity.identity}): {error}"
            ) from None
    trainable.choose(model, train, **config.lora.model_dump())


def fresh(
    config: Config,
    device: torch.device,
    changes: Mapping[str, Any] | None = None,
    policy: Mapping[str, Any] | None = None,
    reads: bool = True,
) -> Trained:
    """Open a pretrained model that no run has trained, with a directory like a run's (`config.run_dir`).

    What a memory adds to it is as initialised with the configuration's seed.

    Args:
        changes, policy: as for `load`.
        reads: whether the task's data are read, and results written; otherwise a text only has a tokenizer.

    Raises:
        UserError: the weights or what the task reads cannot be read, or do not fit into memory; or another
            run is in the directory.
    """
    pretrained.check_room(config.model)
    directory = _directory(config) if reads else Path(config.run_dir).absolute()
    config = _changed(config, changes)
    task = build_task(config)
    if reads or not isinstance(task, TextTask):
        task.prepare()
    else:
        task.open_tokenizer()
    check_vocabulary(config, task)
    torch.manual_seed(config.seed)
    values = config.model if policy is None else choices.bounded(config.model, policy)
    model = compose(values, task.vocab_size, task.members)
    pretrained.load(model, config.model)
    found = Found(directory, directory / checkpoint_file.PRETRAINED, best=False)
    return Trained(found, config, task, model.to(device).eval(), 0, None if policy is None else dict(policy))


def _changed(config: Config, changes: Mapping[str, Any] | None) -> Config:
    own = {key: value for key, value in (changes or {}).items() if key in config.task and value is not None}
    return config.model_copy(update={"task": {**config.task, **own}})


def _directory(config: Config) -> Path:
    """The directory of a model that is not trained, with its `config.yaml`.

    Raises:
        UserError: it cannot be made, or holds another model or a run.
    """
    directory = Path(config.run_dir).absolute()
    check_place(f"run_dir={config.run_dir}", directory)
    file, text = directory / "config.yaml", yaml.safe_dump(config.model_dump(), sort_keys=False)
    if (directory / "checkpoints").exists() or (file.is_file() and not _same(file, config)):
        raise UserError(
            f"run_dir={config.run_dir} holds another run; give another run_dir, or run=DIR for that"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
    except OSError as error:
        raise UserError(f"run_dir={config.run_dir} cannot be used: {error.strerror}") from None
    return directory


def _same(file: Path, config: Config) -> bool:
    """Whether a `config.yaml` describes the same model and task."""
    try:
        saved = yaml.safe_load(file.read_text(encoding="utf-8"))
        return all(saved[key] == config.model_dump()[key] for key in ("model", "task", "seed"))
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return False


def _configuration(found: Found, checkpoint: dict[str, Any]) -> Config:
    """The configuration in the run's directory, or without a directory that in the checkpoint."""
    file, named = found.directory / "config.yaml", str(found.checkpoint)
    values: Any = None
    if file.is_file():
        values, named = _read(file), str(file)
        if not values:
            print(
                f"memlab: warning: {file} is empty; the checkpoint's own configuration is used",
                file=sys.stderr,
            )
    values = values or checkpoint_file.configuration(checkpoint)
    if not isinstance(values, dict):
        raise UserError(f"{named} has no configuration of a run")
    foreign.check(named, values)
    earlier.refuse(str(found.checkpoint), values)
    try:
        return check(OmegaConf.create(values))
    except trust.NotAllowedError as error:
        raise UserError(f"{named}: {error}") from None
    except (ConfigError, ImportError, AttributeError, OSError, KeyError, TypeError) as error:
        raise UserError(
            f"{_version(found.checkpoint, checkpoint)}, and its configuration does not fit: {error}"
        ) from None


def _read(file: Path) -> Any:
    """What a run's `config.yaml` has, as it stands there."""
    try:
        return OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except (OSError, ValueError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from None


def _version(file: Path, checkpoint: dict[str, Any]) -> str:
    version = checkpoint["memlab"].get("version")
    written = "an earlier memlab" if version is None else f"memlab {printable(str(version))}"
    return f"{file} was written by {written}, this is memlab {__version__}"
