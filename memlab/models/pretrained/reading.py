"""Reading a `config.json` key by key, with one message for what our blocks do not have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from memlab.errors import ConfigError


class Reader:
    """The keys of a `config.json`.

    Args:
        place: where it is, for messages.
    """

    def __init__(self, config: Mapping[str, Any], place: str) -> None:
        self.config, self.place = config, place

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            ConfigError: it is missing, or something else.
        """
        found = self.config.get(key)
        found = default if found is None else found
        if not isinstance(found, int) or isinstance(found, bool) or found < 1:
            raise ConfigError(
                f"backbone.path={self.place}: config.json has {key}={found!r}; a positive whole number is "
                "needed"
            )
        return found

    def get(self, key: str, default: Any) -> Any:
        """A value, or the family's default."""
        found = self.config.get(key)
        return default if found is None else found

    def only(self, key: str, default: Any, *allowed: Any) -> Any:
        """A value that has to be one of those that our blocks have.

        Raises:
            ConfigError: it is another one.
        """
        found = self.get(key, default)
        if found not in allowed:
            raise self.lacking(f"{key}={found!r}", " or ".join(repr(value) for value in allowed))
        return found

    def lacking(self, found: str, allowed: str) -> ConfigError:
        """The error for a model that our blocks cannot be."""
        return ConfigError(
            f"backbone.path={self.place}: config.json has {found}, which memlab's blocks do not have; they "
            f"have {allowed}"
        )


def refuse_others(options: Mapping[str, Any], family: str, **own: Any) -> None:
    """Check that blocks have the kinds that a family has.

    Raises:
        ConfigError: one of them is another.
    """
    for key, value in own.items():
        if options[key] != value:
            raise ConfigError(f"{family} has {key}={value}, and this model {key}={options[key]}")
