"""Runs of memlab 0.1, whose models were one class each.

Their results are plain JSON; their weights do not fit.
"""

from __future__ import annotations

from typing import Any

from memlab.errors import UserError


def refuse(named: str, config: Any) -> None:
    """Nothing, if it is a configuration of this memlab.

    Args:
        named: what has this configuration, as the user gave it.
        config: a run's whole configuration, as nested mappings.

    Raises:
        UserError: memlab 0.1 wrote it.
    """
    model = config.get("model") or {}
    if "_target_" in model:
        raise UserError(
            f"{named} was written by memlab 0.1 (model._target_={model['_target_']}). Since 0.2 a model is "
            "composed of backbone, layer_memory and tokens, and weights of 0.1 do not fit. Train the run "
            "again, or open it with memlab 0.1; memlab.compare reads its results as they are"
        )
