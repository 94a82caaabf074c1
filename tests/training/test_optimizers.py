"""AdamW's groups, seen by what one step does, and the learning rate over the steps."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from memlab.config.sections import OptimConfig
from memlab.models import adapters
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.training import optimizers

SIZES: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "dropout": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "rmt": {"layer_memory": "attention", "tokens": "rmt", "memory_tokens": 3},
    "memory_transformer": {"layer_memory": "attention", "tokens": "front", "memory_tokens": 3},
    "transformer": {"layer_memory": "attention", "tokens": "none"},
    "infini": {"layer_memory": "infini", "tokens": "none", "update": "delta", "gate_init": 0.5},
    "memorizing": {
        "layer_memory": "memorizing",
        "tokens": "none",
        "mem_len": 2,
        "memory_layer": 2,
        "memory_size": 9,
        "top_k": 3,
        "scale_init": 5.0,
        "gate_init": 0.5,
    },
}


def build(name: str) -> Model:
    return compose(SIZES | MODELS[name], vocab_size=7)


def config(**changes: Any) -> OptimConfig:
    defaults: dict[str, Any] = {
        "lr": 0.1,
        "gate_lr": 0.3,
        "weight_decay": 0.5,
        "betas": [0.8, 0.95],
        "warmup_steps": 0,
    }
    return OptimConfig(**(defaults | {"schedule": "constant", "gradient_clip": 1.0} | changes))


@pytest.mark.parametrize("name", MODELS)
def test_linear_weights_are_decayed_and_nothing_else(name: str) -> None:
    """Without a gradient a step multiplies a decayed parameter by 1 - lr * weight_decay,
    and leaves any other exactly as it was.
    """
    torch.manual_seed(0)
    model = build(name)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1  # biases of 0 would not show a decay
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer, _ = optimizers.build(model, config(), max_steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    decayed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    matrices = (
        "memory.attention.qkv.weight",
        "memory.attention.out.weight",
        "ffn.up.weight",
        "ffn.down.weight",
    )
    assert decayed == {f"backbone.blocks.{layer}.{matrix}" for layer in range(2) for matrix in matrices} | {
        "backbone.head.weight"
    }
    for parameter_name in decayed:
        torch.testing.assert_close(
            model.get_parameter(parameter_name), before[parameter_name] * (1 - 0.1 * 0.5)
        )


@pytest.mark.parametrize("name", ["infini", "memorizing"])
def test_gates_have_their_own_learning_rate_and_no_decay(name: str) -> None:
    """With a gradient of 1, Adam's first step moves a parameter by its learning rate."""
    model = build(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer, _ = optimizers.build(model, config(), max_steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {
        n: (before[n] - p.detach()).flatten()[0].item()
        for n, p in model.named_parameters()
        if n != "backbone.embed.weight"
    }
    gates = {n for n in moved if ".gate" in n}
    layers = {"infini": [0, 1], "memorizing": [1]}[name]
    assert gates == {f"backbone.blocks.{layer}.memory.gate_H" for layer in layers}
    for n in gates:
        assert moved[n] == pytest.approx(0.3, rel=1e-4)
    assert moved["backbone.head.bias"] == pytest.approx(0.1, rel=1e-4)
    assert sorted(map(id, model.parameters())) == sorted(
        id(p) for group in optimizer.param_groups for p in group["params"]
    )


def test_embeddings_memories_biases_and_normalisations_are_among_those_not_decayed() -> None:
    """The names that the test above leaves over, so that it is seen that they are meant."""
    model = build("rmt")
    optimizer, _ = optimizers.build(model, config(), max_steps=10)
    names = {id(p): n for n, p in model.named_parameters()}
    spared = {
        names[id(p)]
        for group in optimizer.param_groups
        if group["weight_decay"] == 0
        for p in group["params"]
    }
    assert {
        "backbone.embed.weight",
        "tokens.initial_memory_MD",
        "backbone.head.bias",
        "backbone.norm.weight",
        "backbone.norm.bias",
    } <= spared
    assert {
        "backbone.blocks.0.memory.norm.weight",
        "backbone.blocks.1.ffn_norm.bias",
        "backbone.blocks.0.ffn.up.bias",
    } <= spared


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_is_in_one_group(name: str) -> None:
    model = build(name)
    optimizer, _ = optimizers.build(model, config(), max_steps=10)
    ids = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())


def test_a_step_with_a_gradient_moves_every_parameter_by_about_the_learning_rate() -> None:
    """Adam's first step is lr in the gradient's direction; the configuration's betas arrive."""
    model = build("rmt")
    optimizer, _ = optimizers.build(model, config(weight_decay=0.0), max_steps=10)
    assert all(group["betas"] == (0.8, 0.95) for group in optimizer.param_groups)
    before = [p.detach().clone() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    optimizer.step()
    for old, new in zip(before, model.parameters(), strict=True):
        torch.testing.assert_close(old - new.detach(), torch.full_like(old, 0.1), rtol=1e-4, atol=1e-6)


def rates(steps: int, max_steps: int, **changes: Any) -> list[float]:
    """The learning rate with which each of so many steps is made."""
    model = nn.Linear(2, 2)
    optimizer, scheduler = optimizers.build(model, config(lr=0.2, **changes), max_steps)
    used = []
    for _ in range(steps):
        assert len({group["lr"] for group in optimizer.param_groups}) == 1
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_warmup_rises_linearly_to_the_learning_rate_and_no_step_is_made_with_none() -> None:
    assert rates(8, 20, warmup_steps=5) == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2, 0.2, 0.2, 0.2])


def test_without_warmup_the_first_step_has_the_whole_learning_rate() -> None:
    assert rates(3, 20) == pytest.approx([0.2] * 3)
    assert rates(1, 20, schedule="cosine") == pytest.approx([0.2])


def test_cosine_falls_from_the_learning_rate_after_warmup_to_a_tenth_at_the_end_and_stays() -> None:
    used = rates(60, max_steps=50, warmup_steps=10, schedule="cosine")
    assert used[:10] == pytest.approx([0.02 * (i + 1) for i in range(10)])
    assert used[10] == pytest.approx(0.2)
    assert used[30] == pytest.approx((0.2 + 0.02) / 2)  # half way
    assert used[20] == pytest.approx(0.02 + 0.18 * (1 + 0.5**0.5) / 2)  # a quarter: cos(45 degrees)
    assert used[50:] == pytest.approx([0.02] * 10)
    assert all(later < earlier for earlier, later in itertools.pairwise(used[10:51]))


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_a_run_shorter_than_its_warmup_only_warms_up(schedule: str) -> None:
    assert rates(4, max_steps=4, warmup_steps=8, schedule=schedule) == pytest.approx(
        [0.025, 0.05, 0.075, 0.1]
    )


def test_a_resumed_schedule_goes_on_where_it_was() -> None:
    model = nn.Linear(2, 2)
    settings = config(lr=0.2, warmup_steps=3, schedule="cosine")
    expected = rates(12, max_steps=12, warmup_steps=3, schedule="cosine")
    optimizer, scheduler = optimizers.build(model, settings, 12)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    resumed, resumed_scheduler = optimizers.build(model, settings, 12)
    resumed.load_state_dict(optimizer.state_dict())
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    for step in range(5, 12):
        assert resumed.param_groups[0]["lr"] == pytest.approx(expected[step])
        resumed.step()
        resumed_scheduler.step()


def test_memory_tokens_may_have_a_learning_rate_of_their_own() -> None:
    """With a gradient of 1, Adam's first step moves a parameter by its learning rate; gates have theirs."""
    model = compose(SIZES | MODELS["rmt"] | {"layer_memory": "infini"}, vocab_size=7)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer, _ = optimizers.build(model, config(memory_lr=0.7, weight_decay=0.0), max_steps=10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = 0.7 if name.startswith("tokens.") else 0.3 if ".gate" in name else 0.1
        torch.testing.assert_close(
            before[name] - parameter.detach(), torch.full_like(parameter, expected), rtol=1e-4, atol=1e-6
        )


def test_adapters_are_decayed_and_frozen_parameters_are_left_out() -> None:
    model = build("rmt")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapters.adapt(model, 2, 1.0, ["q", "ffn"])
    optimizer, _ = optimizers.build(model, config(), max_steps=10)
    names = {id(p): n.rpartition(".")[2] for n, p in model.named_parameters()}
    (group,) = optimizer.param_groups
    assert group["weight_decay"] == 0.5
    assert sorted(names[id(p)] for p in group["params"]) == 2 * 3 * ["A_CrD"] + 2 * 3 * ["B_Pr"]
