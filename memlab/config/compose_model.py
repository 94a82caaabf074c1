"""The values of `model` for a preset, `model=NAME`, as a command line would compose them.

No torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memlab.config import trust
from memlab.config.checks import check_model, with_policy
from memlab.config.composing import composing
from memlab.config.overrides import spelled
from memlab.config.pretrained_keys import settle
from memlab.errors import ConfigError, suggestion


def model_values(name: str, overrides: Sequence[str] = (), own: Path | None = None) -> dict[str, Any]:
    """The values of `model` of a preset: what `memlab.models.compose.compose` builds a model from.

    Args:
        name: of a file of `configs/model/`.
        overrides: as on the command line: `model.width=16`, `layer_memory=infini`.
        own: a directory of your own groups, as --config-dir; that of the running command is always searched.

    Raises:
        ConfigError: there is no such preset, or values do not go together.
    """
    names = model_names(own)
    if name not in names:
        raise ConfigError(
            f"no model is named {name!r}.{suggestion(name, names)} There are: {', '.join(names)}"
        )
    with _composing():
        try:
            also = [] if own is None else [f"hydra.searchpath=[file://{own.absolute()}]"]
            words = spelled([f"model={name}", *overrides])
            composed = compose("train", [*words, *also])
            plain: Any = OmegaConf.to_container(composed, resolve=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"model={name}: {str(error).splitlines()[0]}") from None
    values: dict[str, Any] = settle(with_policy(plain)["model"])
    with trust.allowing(folder=own):
        check_model(values)
    return values


def model_names(own: Path | None = None) -> list[str]:
    """All presets: memlab's, those in the --config-dir of the running command, those in `own`."""
    with _composing():
        found = set(GlobalHydra.instance().config_loader().get_group_options("model"))
    return sorted(found | ({file.stem for file in (own / "model").glob("*.yaml")} if own else set()))


@contextmanager
def _composing() -> Iterator[None]:
    """Within the running command's Hydra, which knows its --config-dir; or a new one."""
    running = GlobalHydra.instance()
    if running.is_initialized() and "model" in running.config_loader().list_groups(""):
        yield
    else:
        with composing():
            yield
