"""Whose a parameter is: for every model of the conformance suite, against the backbone composed alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.memories.attention import Attention
from memlab.models import adapters
from memlab.models.compose import compose
from memlab.models.ownership import memory_parameters
from tests.conformance.test_contract import VOCAB, build, files, options, values

SIZES = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "tokens": "none"}


def alone(name: str, changed: dict[str, Any]) -> set[str]:
    """The parameters of the same backbone with attention in its layers and no memory tokens."""
    plain = {"layer_memory": "attention", "tokens": "none", "context": "segment", "memory": "on"}
    model = values(name)
    layers = 2 if isinstance(model["layer_memory"], str) else model["layers"]
    with torch.device("meta"):
        return set(dict(compose({**model, **changed, **plain, "layers": layers}, VOCAB).named_parameters()))


CHANGED = [("rmt_xl", changed) for changed in options("rmt_xl") if changed]


@pytest.mark.parametrize(("name", "changed"), [*((name, {}) for name in files()), *CHANGED], ids=str)
def test_the_memory_owns_what_the_backbone_alone_does_not_have(name: str, changed: dict[str, Any]) -> None:
    model = build(name, changed)
    parameters = dict(model.named_parameters())
    found = memory_parameters(model)
    assert set(found) == parameters.keys() - alone(name, changed)
    assert all(found[n] is parameters[n] for n in found)


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("transformer", set()),
        ("transformer_xl", set()),  # u, v and distances belong to its positions
        ("rmt", {"tokens.initial_memory_MD"}),
        ("rmt_encoder", {"tokens.class_token_D", "tokens.initial_memory_MD"}),
        ("infini", {f"backbone.blocks.{n}.memory.gate_H" for n in range(2)}),
        ("memorizing", {"backbone.blocks.1.memory.gate_H", "backbone.blocks.1.memory.scale_H"}),
    ],
)
def test_by_name(name: str, own: set[str]) -> None:
    changed = {"memory_layer": 2} if name == "memorizing" else {}
    assert set(memory_parameters(build(name, changed))) == own


def test_adapters_and_what_they_adapt_are_not_the_memorys() -> None:
    model = build("infini", {})
    before = set(memory_parameters(model))
    adapters.adapt(model, 2, 1.0, ["q", "k", "v", "out", "ffn"])
    assert set(memory_parameters(model)) == before


class Wider(Attention):
    """Projects to other widths than plain attention."""

    def __init__(self, description: Description) -> None:
        super().__init__(description)
        self.attention.out = nn.Linear(2 * description.width, description.width)


def test_a_parameter_of_another_shape_is_nobodys() -> None:
    model = compose({**SIZES, "layer_memory": f"{__name__}.Wider"}, VOCAB)
    with pytest.raises(ConfigError, match=r"Wider in layer 1 has attention.out.weight of shape \[8, 16\]"):
        memory_parameters(model)
