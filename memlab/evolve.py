"""`python -m memlab.evolve run=DIR policy=namm generations=200`: evolve what a key-value cache keeps.

A pretrained model, which no run has trained, is described as for `memlab.train`, in the place of `run=DIR`:
`backbone=pretrained backbone.path=DIR task=passkey_text task.tokenizer=pretrained`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from memlab.config import cli, untrained
from memlab.config.checks import NOT_SHOWN
from memlab.config.untrained import Untrained
from memlab.errors import ConfigError
from memlab.training.evolve_settings import EvolveConfig, check_evolve


def job(config: EvolveConfig, words: Sequence[str]) -> int:
    from memlab.training.evolving import run

    run(config, words)
    return 0


def separate(words: Sequence[str]) -> tuple[list[str], Untrained]:
    """Separate a command line into the words of this command and those that describe a pretrained model.

    The task is among both, since its tokenizer may be that of the model. Unless the words say otherwise, the
    model has full attention.

    Raises:
        ConfigError: a model is described, and no task.
    """
    own, about = untrained.separate("evolve", words)
    if not about.words:
        return own, about

    def group(word: str) -> str:
        return word.partition("=")[0].partition(".")[0]

    task = [word for word in own if group(word) == "task"]
    if not task:
        raise ConfigError("task is missing: a pretrained model has none of its own; give task=NAME")
    layers = {group(word) for word in about.words} & {"model", "layer_memory", "tokens"}
    full = () if layers else ("model=transformer", "model.context=full")
    return own, Untrained((*full, *about.words, *task), about.folder)


def main() -> None:
    given = sys.argv[1:]
    own, about = cli.or_exit("evolve", lambda: separate(given))
    sys.argv[1:] = own
    cli.run(
        "evolve",
        lambda composed: check_evolve(composed, about.config()),
        lambda config: job(config, given),
        unused=NOT_SHOWN,
    )


if __name__ == "__main__":
    main()
