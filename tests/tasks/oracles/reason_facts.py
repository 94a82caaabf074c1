"""See `facts.py`."""

from tests.tasks.oracles.facts import solve

__all__ = ["solve"]
