"""What is measured without values is what is measured with them, for every preset."""

from __future__ import annotations

import itertools

import pytest
import torch

from memlab.config.compose_model import model_names, model_values
from memlab.evaluation import cost, memory
from memlab.evaluation.without_values import measured, on_meta
from memlab.models.base import Model
from memlab.models.compose import compose


@pytest.mark.parametrize("name", model_names())
def test_every_preset(name: str) -> None:
    model = compose(model_values(name, ["model.width=16", "model.heads=2"]), 13).eval()
    twin = on_meta(model)
    assert twin.device.type == "meta" and model.device.type == "cpu"
    assert cost.flops_per_token(twin, (6, 5)) == cost.flops_per_token(model, (6, 5))
    traces = [memory.trace(each, (5, 5, 5)) for each in (twin, model)]
    if name == "cached":  # what is in use of a padded cache is a matter of values
        for cost_ in itertools.chain(*traces):
            del cost_["used_bytes"]
    assert traces[0] == traces[1]


def test_a_model_that_looks_at_values_is_measured_itself() -> None:
    model = compose(model_values("transformer", ["model.width=16"]), 13)

    def measure(asked: Model) -> float:
        return float(asked.backbone.embed.weight.sum())

    torch.testing.assert_close(measured(model, measure), measure(model))
