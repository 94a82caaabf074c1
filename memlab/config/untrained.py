"""A command line about a pretrained model that no run has trained.

    memlab.evaluate backbone=pretrained backbone.path=DIR model=transformer task=passkey lengths=[4,8]

Words that the command itself does not have (`backbone`, `model`, `task`, ..) describe the model and its task,
as they would for `memlab.train`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from memlab.config.checks import check
from memlab.config.composing import compose_checked
from memlab.config.paths import config_dir
from memlab.config.pretrained_keys import NAME
from memlab.config.sections import Config
from memlab.errors import ConfigError

# Groups and keys that say how a training goes.
_TRAINING = ("trainer", "optim", "curriculum", "tracking", "lora", "experiment", "resume", "experiment_file")


@dataclass(frozen=True)
class Untrained:
    """What describes the model and its task.

    Attributes:
        words: KEY=VALUE; () = the command is about a run.
        folder: of `--config-dir`.
    """

    words: tuple[str, ...]
    folder: str | None

    def writing(self) -> Untrained:
        """The same, to generate text: by default with full attention, and with the model's own tokenizer."""
        if not self.words:
            return self
        keys = {_key(word) for word in self.words}
        more = []
        if not keys & {"model", "layer_memory", "tokens"}:
            more += ["model=transformer", "model.context=full"]
        if "task" not in keys:
            more.append("task=text")
        if "task.tokenizer" not in keys:
            more.append("task.tokenizer=pretrained")
        return Untrained((*more, *self.words), self.folder)

    def config(self) -> Config | None:
        """The configuration that `memlab.train` would have; None = the command is about a run.

        Its `run_dir`, unless given, is the same for the same model and task.

        Raises:
            ConfigError: it is wrong, or has a key of which only a training has use.
        """
        if not self.words:
            return None
        for word in self.words:
            if (key := _key(word)) is not None and key.partition(".")[0] in _TRAINING:
                raise ConfigError(f"{word}: nothing is trained here, so nothing reads this key")
        config: Config = compose_checked("train", self.words, check, self.folder)
        if config.model["backbone"] != NAME:
            raise ConfigError(
                f"run is missing, and backbone={config.model['backbone']} has no weights: give run=DIR, or "
                "backbone=pretrained backbone.path=.."
            )
        if any(_key(word) == "run_dir" for word in self.words):
            return config
        parts = [config.model, config.task, config.seed]
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
        place = os.path.join("runs", config.task["name"], config.model["name"], f"pretrained-{digest}")
        return config.model_copy(update={"run_dir": place})


def separate(command: str, words: Sequence[str]) -> tuple[list[str], Untrained]:
    """Separate a command line into the command's own words and those that describe a model.

    If one of its own is `run=`, or no word mentions a backbone, all words are the command's own.
    """
    root: Any = OmegaConf.to_container(OmegaConf.load(os.path.join(config_dir(), f"{command}.yaml")))
    own = root.keys() | {group for entry in root["defaults"] if isinstance(entry, dict) for group in entry}
    folder = get_args_parser().parse_known_args(list(words))[0].config_dir

    def described(word: str) -> bool:
        key = _key(word)
        return key is not None and key.partition(".")[0] not in own

    keys = [_key(word) for word in words]
    if "run" in keys or not any(key and key.partition(".")[0] == "backbone" for key in keys):
        return list(words), Untrained((), folder)
    about = tuple(word for word in words if described(word))
    if "--multirun" in words or "-m" in words:
        raise ConfigError("--multirun: with a backbone that no run has trained, start one after another")
    return [word for word in words if not described(word)], Untrained(about, folder)


def _key(word: str) -> str | None:
    """The key of KEY=VALUE; None = the word is something else."""
    key, equals, _ = word.partition("=")
    return key.lstrip("+~") if equals and not word.startswith("-") else None
