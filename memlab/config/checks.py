"""Checks of what Hydra composed, key by key and across groups, before anything is started or written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf

from memlab.bounds import NonNegative
from memlab.config import pretrained_keys, schema, trust
from memlab.config.sections import CompareConfig, Config, GrowingCurriculum, LoraConfig, ShowConfig, typed
from memlab.errors import ConfigError, suggestion
from memlab.files import is_file_name
from memlab.models import choices
from memlab.tasks import growth
from memlab.tasks.base import SyntheticTask, Task
from memlab.terminal.plain import printable

PRETRAINED = "pretrained"  # a task's tokenizer
# a task's file may say how it is best trained, which is of no use to `memlab.show`
NOT_SHOWN = ("optim", "trainer", "curriculum")
RunT = TypeVar("RunT", bound=Config)


def check(composed: DictConfig, kind: type[RunT] = Config) -> RunT:  # type: ignore[assignment]
    """The typed configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is out of bounds.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    if isinstance(plain.get("model"), dict):
        plain["model"] = pretrained_keys.settle(plain["model"])
    config = typed(with_policy(plain), kind)
    check_model(config.model)
    check_task(config.task)
    _check_together(config, build_task(config))
    return config


def check_show(composed: DictConfig) -> ShowConfig:
    """The typed configuration of `memlab.show`.

    Raises:
        ConfigError: as `check`.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    config = typed({key: value for key, value in plain.items() if key not in NOT_SHOWN}, ShowConfig)
    check_task(config.task)
    build_task(config)
    return config


def check_compare(composed: DictConfig) -> CompareConfig:
    """The typed configuration of `memlab.compare`.

    Raises:
        ConfigError: as `check`, or keys contradict each other.
    """
    config = typed(OmegaConf.to_container(composed, resolve=True), CompareConfig)
    if config.runs is not None and config.experiment is not None:
        raise ConfigError(
            "experiment and runs are both given: runs=[..] names each run, so leave experiment out"
        )
    if config.runs is not None and config.filter is not None:
        raise ConfigError(
            "filter chooses among the runs of an experiment; with runs=[..] there is nothing to choose"
        )
    return config


def build_task(config: Config | ShowConfig) -> Task:
    """The task of a configuration. With `tokenizer: pretrained`, it has that of the model's backbone.

    Raises:
        ConfigError: the task's values do not go together, or its class is not a task.
    """
    arguments = config.arguments("task")
    if isinstance(config, Config) and arguments.get("tokenizer") == PRETRAINED:
        arguments["tokenizer"] = config.model.get("path") or PRETRAINED
        if config.model.get("family") == "memlab":
            raise ConfigError(
                f"task.tokenizer=pretrained: backbone.path={config.model['path']} is a run of memlab; name "
                "the tokenizer of its task: bytes, or the path of its tokenizer.json"
            )
    kind: type[Task] = schema.load(config.task["_target_"], Task)
    return kind(**arguments)


def check_vocabulary(config: Config, task: Task) -> None:
    """Whether a pretrained backbone has an embedding for each token of a text.

    Args:
        task: prepared.

    Raises:
        ConfigError: it has not; the tokenizer is another model's.
    """
    tokenizer, own = config.task.get("tokenizer"), config.model.get("vocabulary")
    if tokenizer is None or own is None:
        return
    path, family = config.model["path"], config.model["family"]
    own_words = tokenizer in ("bytes", "bpe", "words") and family != "memlab"
    if own_words or task.vocab_size > own:
        ids = f"{task.vocab_size:,} token ids of its own" if own_words else f"{task.vocab_size:,} token ids"
        raise ConfigError(
            f"task.tokenizer={tokenizer} has {ids}, and the embedding of backbone.path={path} {own:,} rows "
            "for those of another tokenizer; use task.tokenizer=pretrained"
        )


def _check_together(config: Config, task: Task) -> None:
    """Combinations across groups."""
    trainer = config.trainer
    if trainer.recompute_together is not None and trainer.recompute != "segment":
        raise ConfigError(
            f"trainer.recompute_together={trainer.recompute_together} counts segments, and "
            f"trainer.recompute={trainer.recompute} has none; use null, or trainer.recompute=segment"
        )
    if trainer.train != "lora" and config.lora != LoraConfig():
        raise ConfigError(
            f"lora.{_first_changed(config.lora)}: there are adapters only with trainer.train=lora; found "
            f"trainer.train={trainer.train}"
        )
    if trainer.patience and trainer.stop_at_accuracy is None:
        raise ConfigError(
            f"trainer.patience={trainer.patience} counts validations after trainer.stop_at_accuracy is "
            "reached, and that is null; use 0, or give the accuracy"
        )
    depth = config.bptt_depth
    if depth is not None and depth >= task.num_segments:
        allowed = f"0..{task.num_segments - 1} or null"
        raise ConfigError(
            f"model.bptt_depth={depth}: a training step reads {task.num_segments} segments, so it may be "
            f"{allowed}"
        )
    if (size := config.trainer.known_size) is not None:
        check_shares(config, task, size)
    if isinstance(config.curriculum, GrowingCurriculum):
        growth.stages(task, config.curriculum.by, config.curriculum.sizes)
    if isinstance(task, SyntheticTask):
        for segments in trainer.val_segments or []:
            task.at(segments)
        return
    if trainer.val_segments is not None:
        raise ConfigError(
            f"trainer.val_segments={trainer.val_segments}: the documents of task={config.task['name']} have "
            "lengths of their own; use null"
        )
    if isinstance(config.curriculum, GrowingCurriculum):
        name = config.task["name"]
        if config.curriculum.threshold is not None:
            raise ConfigError(
                f"curriculum.threshold={config.curriculum.threshold}: task={name} is text and has no "
                "accuracy; use null"
            )
        if config.curriculum.stage_steps is None:
            raise ConfigError(
                f"curriculum.stage_steps=null: task={name} is text and has no accuracy at which a stage "
                "could end; give the steps of a stage, or use curriculum=off"
            )
    if config.trainer.stop_at_accuracy is not None:
        raise ConfigError(
            f"trainer.stop_at_accuracy={config.trainer.stop_at_accuracy}: text has no answers to be right "
            "about; use null"
        )


def _first_changed(lora: LoraConfig) -> str:
    """The first key that differs from its default, with its value."""
    values, defaults = lora.model_dump(), LoraConfig().model_dump()
    return next(f"{key}={value}" for key, value in values.items() if value != defaults[key])


def check_shares(config: Config, task: Task, size: int) -> None:
    """Check that the rows of a batch, and the samples of validation and test, can be divided among this many
    processes, and read in parts.

    Raises:
        ConfigError: they cannot.
    """
    if task.batch_size % size:
        raise ConfigError(
            f"task.batch_size={task.batch_size} counts the rows of all processes, and {size} cannot share "
            "them evenly"
        )
    parts = config.trainer.accumulate
    if task.batch_size // size % parts:
        rows = f"the {task.batch_size // size} rows of each process" if size > 1 else "the rows of a step"
        raise ConfigError(
            f"trainer.accumulate={parts}: {rows} (task.batch_size={task.batch_size}) do not divide into "
            f"{parts} parts"
        )
    if config.model.get("memory") == "shuffled" and task.batch_size // size // parts < 2 * task.members:
        where = f"task.batch_size={task.batch_size} has none" + f" in each of {size} processes" * (size > 1)
        where += f" with trainer.accumulate={parts}" * (parts > 1)
        other = "of another group of samples" if task.members > 1 else "of another sample of the batch"
        raise ConfigError(f"model.memory=shuffled reads the memory {other}; {where}")
    if isinstance(task, SyntheticTask):
        for name in ("validation_size", "test_size"):
            if getattr(task, name) < size:
                raise ConfigError(
                    f"task.{name}={getattr(task, name)}: each of the {size} processes reads at least one "
                    "sample"
                )


def with_policy(plain: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose group `policy` is in `model`, since it belongs to the model's layers."""
    values, policy = {k: v for k, v in plain.items() if k != "policy"}, plain.get("policy")
    return values if policy is None else {**values, "model": {**values["model"], "policy": policy}}


def check_model(values: dict[str, Any]) -> None:
    """Check that each key is an option of a part that was chosen, and has a value that it accepts.

    Raises:
        ConfigError: it is not, or a key is missing.
    """
    if "_target_" in values:
        raise ConfigError(
            f"model._target_={values['_target_']} is of memlab 0.1: since 0.2 a model is composed of "
            "backbone, layer_memory and tokens, and weights of 0.1 do not fit; train it again, or use "
            "memlab 0.1"
        )
    _check_name("model", values.get("name"))
    fixed = _OF_EVERY_MODEL | (pretrained_keys.KEYS if values.get("backbone") == pretrained_keys.NAME else {})
    for key, annotation in fixed.items():
        if key not in values:
            raise ConfigError(f"model.{key} is missing: every model has it")
        schema.check_value(f"model.{key}", values[key], annotation)
    options = model_options(values)
    if values.get("context") == "full" and "attention" not in _listed(values["layer_memory"]):
        raise ConfigError(
            "model.context=full: it says what layers without a memory look at, and "
            f"layer_memory={values['layer_memory']} has none; use layer_memory=full"
        )
    _check_policy(values)
    for key, value in values.items():
        if key in fixed or key == "policy":
            continue
        if key not in options:
            parts = (
                f"backbone={values['backbone']}, layer_memory={values['layer_memory']}, "
                f"tokens={values['tokens']}"
            )
            raise ConfigError(f"{unknown_key(f'model.{key}', list(options))} (as composed: {parts})")
        schema.check_value(f"model.{key}", value, options[key].annotation)
    for key, option in options.items():
        if option.required and key not in values:
            raise ConfigError(f"model.{key} is missing: it has to be {option.words}")


def _check_policy(values: dict[str, Any]) -> None:
    """Whether a policy is given if layers have a bounded cache, and only then, with options that it has."""
    chosen, policy = choices.choose(values), values.get("policy")
    bounded = any("policy" in schema.parameters(memory) for memory in chosen.memories)
    if policy is None:
        if bounded:
            raise ConfigError(
                f"model.layer_memory={values['layer_memory']} needs a policy, policy=NAME; there are: "
                f"{', '.join(choices.names('policy'))}"
            )
        return
    if not bounded:
        raise ConfigError(
            f"policy={policy['name']}: none of the layers has a bounded cache (model.layer_memory="
            f"{values['layer_memory']}); use layer_memory=cached"
        )
    check_policy(policy)


def check_policy(values: Mapping[str, Any]) -> None:
    """Whether each key is an option of the policy `name`, and has a value that it accepts.

    Raises:
        ConfigError: there is no such policy, or a key is none of its options.
    """
    if not isinstance(values.get("name"), str):
        raise ConfigError("policy.name is missing: it is the policy, in a file of configs/policy")
    target = choices.target("policy", values["name"])
    trust.check("policy.name", target)
    found = schema.parameters(target)
    options = {key: option for key, option in found.items() if key not in choices.GIVEN}
    for key, value in values.items():
        if key == "name":
            continue
        if key not in options:
            raise unknown_key(f"policy.{key}", list(options))
        schema.check_value(f"policy.{key}", value, options[key].annotation)


def model_options(values: Mapping[str, Any]) -> dict[str, schema.Parameter]:
    """The keys that the chosen backbone, layer memories and memory tokens of a model have, and what each
    accepts.

    Raises:
        ConfigError: there is no such choice, or the layers cannot be divided among the memories.
    """
    backbone = schema.parameters(choices.BACKBONE)
    if isinstance(values.get("layers"), int):
        schema.check_value("model.layers", values["layers"], backbone["layers"].annotation)
    else:
        raise ConfigError(f"model.layers={values.get('layers')!r}: a number of layers is needed")
    chosen = choices.choose(values)
    trust.check("model.tokens", chosen.tokens)
    for memory in dict.fromkeys(chosen.memories):
        trust.check("model.layer_memory", memory)
    options = {**backbone, **schema.parameters(chosen.tokens)}
    for memory in dict.fromkeys(chosen.memories):
        options |= schema.parameters(memory)
    given = {"width"} - backbone.keys() | set(choices.GIVEN)
    options = {name: option for name, option in options.items() if name not in given} | {
        "width": backbone["width"]
    }
    options["context"] = schema.Parameter(Literal["segment", "full"], "", required=False)
    return options


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


# The keys of a model that are not options of its parts.
_OF_EVERY_MODEL: dict[str, Any] = {
    "name": str,
    "backbone": str,
    "layer_memory": str | list[str],
    "tokens": str,
    "memory": Literal["on", "off", "shuffled"],
    "bptt_depth": NonNegative | None,
}


def check_task(values: dict[str, Any]) -> None:
    """Whether the keys are those of the task's constructor, and have values that it accepts.

    Raises:
        ConfigError: they are not, or one is missing.
    """
    for key in ("_target_", "name"):
        if not isinstance(values.get(key), str):
            raise ConfigError(
                f"task.{key} is missing from configs/task/*.yaml: it names the class, and the task in reports"
            )
    _check_name("task", values["name"])
    trust.check("task._target_", values["_target_"])
    arguments = schema.parameters(values["_target_"])
    for key, value in values.items():
        if key in ("_target_", "name"):
            continue
        if key not in arguments:
            raise unknown_key(f"task.{key}", [k for k in values if k in arguments])
        schema.check_value(f"task.{key}", value, arguments[key].annotation)
    for key in arguments.keys() - values.keys():
        if arguments[key].required:
            raise ConfigError(
                f"task.{key} is missing: {values['_target_']} needs it ({arguments[key].words})"
            )


def _check_name(group: str, name: Any) -> None:
    """Check that a name, which is part of paths, is that of one directory, and shows as it is.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(name, str) and (not is_file_name(name) or printable(name) != name):
        raise ConfigError(
            f"{group}.name={printable(name)}: runs are in a directory of this name, so it has no / and no "
            "control characters"
        )


def unknown_key(key: str, known: list[str]) -> ConfigError:
    """The error for a key that nothing reads, with the keys that are there instead."""
    group, _, name = key.rpartition(".")
    near = suggestion(name, known)
    return ConfigError(
        f"unknown key {key!r}.{near} Keys of {group or 'the root'}: {', '.join(sorted(known))}"
    )
