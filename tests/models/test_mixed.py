"""Layers of several kinds in one model, and memory tokens over each: every form reads the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.memories.transformer_xl import XLState
from memlab.models.base import Model, ModelState
from tests import building
from tests.building import tokens
from tests.models import naive

SMALL: dict[str, Any] = {"mem_len": 3, "memory_size": 5, "top_k": 2}
LAYERS: list[list[str]] = [
    ["attention", "full"],
    ["full", "attention"],
    ["full", "infini"],
    ["infini", "full"],
    ["full", "memorizing"],
    ["transformer_xl", "full"],
    ["attention", "memorizing"],
    ["transformer_xl", "infini"],
    ["infini", "memorizing"],
    ["memorizing", "transformer_xl"],
]
POSITIONS: list[dict[str, Any]] = [
    {"positions": "rope"},
    {"positions": "transformer_xl", "untie": True},
    {"positions": "learned", "max_positions": 40},
    {"positions": "none"},
]
TOKENS: list[dict[str, Any]] = [
    {"tokens": "none"},
    {"tokens": "front", "memory_tokens": 2},
    {"tokens": "rmt", "memory_tokens": 2},
    {"tokens": "rmt", "memory_tokens": 3, "write_memory": "learned", "read_mem_from_cache": True},
]


def assert_equal(one: tuple[Tensor, Any], other: tuple[Tensor, Any], model: Model) -> None:
    """Logits, states and gradients of both in all that has one."""
    values = [[logits, *state.tensors()] for logits, state in (one, other)]
    for a, e in zip(*values, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)
    found = []
    for tensors in values:
        live = [t for t in tensors if t.requires_grad]
        loss = sum((w * t).sum() for w, t in zip(naive.random_like(*live), live, strict=True))
        parameters = list(model.parameters())
        found.append(torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True))
    for (name, _), a, e in zip(model.named_parameters(), *found, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def ids(options: Any) -> str:
    return "+".join(options) if isinstance(options, list) else "-".join(map(str, options.values()))


@pytest.mark.parametrize("positions", POSITIONS, ids=ids)
@pytest.mark.parametrize("layers", LAYERS, ids=ids)
def test_the_parallel_form_is_the_fold_over_segments(layers: list[str], positions: dict[str, Any]) -> None:
    """From the beginning of a document and from its middle."""
    model, tokens_BSN = building.build(layers, **(SMALL | positions)), tokens(3, 3, 4)
    assert model.parallel is not None
    carried = model.recurrent(tokens(3, 2, 3, seed=5), model.init_state(3)).state.detach()
    for state in (model.init_state(3), carried):
        outputs = [form(tokens_BSN, state) for form in (model.parallel, model.recurrent)]
        assert_equal(*((o.logits, o.state) for o in outputs), model)


@pytest.mark.parametrize(
    ("around", "positions"),
    [(a, p) for a, p in zip(TOKENS, POSITIONS, strict=True)]
    + [(a, p) for a in TOKENS[2:] for p in POSITIONS[:2]],
    ids=ids,
)
@pytest.mark.parametrize(
    "layers", [[name] for name in sorted({n for p in LAYERS for n in p})] + LAYERS[2:5], ids=ids
)
def test_pieces_are_the_segment(layers: list[str], around: dict[str, Any], positions: dict[str, Any]) -> None:
    model, tokens_BSN = building.decoder(layers, **(SMALL | around | positions)), tokens(2, 3, 4)
    whole = model.recurrent(tokens_BSN, model.init_state(2))
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, [1, 3])
    assert_equal((logits_BTV.unflatten(1, (3, 4)), state), (whole.logits, whole.state), model)


@pytest.mark.parametrize("around", TOKENS, ids=ids)
@pytest.mark.parametrize("layers", LAYERS, ids=ids)
def test_a_document_that_begins_sees_nothing_of_the_one_before(
    layers: list[str], around: dict[str, Any]
) -> None:
    model, tokens_BSN = building.build(layers, **(SMALL | around)), tokens(3, 4, 3)
    state = model(tokens_BSN[:, :2]).state.reset(torch.tensor([False, True, False]), model.init_state(3))
    mixed = model(tokens_BSN[:, 2:], state).logits
    torch.testing.assert_close(mixed[[1]], model(tokens_BSN[[1], 2:]).logits, rtol=1e-9, atol=1e-10)
    whole = model(tokens_BSN).logits[:, 2:]
    torch.testing.assert_close(mixed[[0, 2]], whole[[0, 2]], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("around", TOKENS, ids=ids)
@pytest.mark.parametrize("mem_len", [1, 3, 9])
def test_same_length_is_the_same_length_beside_memory_tokens(mem_len: int, around: dict[str, Any]) -> None:
    """Every token sees mem_len tokens, itself included, and the memory tokens before its segment.

    With one layer that is a plain question: which earlier tokens move a token's logits?
    """
    model = building.decoder("transformer_xl", same_length=True, mem_len=mem_len, layers=1, **around)
    state = model(tokens(1, 3, 4)).state.detach()
    hidden_BCD = state.layers[0].hidden_BCD
    own_1ND = model.backbone.embed(tokens(1, 4, seed=4)).detach()

    # rows of the memory and embeddings of the tokens that ask for their gradients
    rows = [hidden_BCD.clone().requires_grad_(), own_1ND.clone().requires_grad_()]
    layers = (XLState(rows[0], state.layers[0].filled_B),)
    model.backbone.embed.register_forward_hook(lambda *_: rows[1])
    output = model.segment(tokens(1, 4, seed=4), dataclasses.replace(state, layers=layers))
    for i, logits_V in enumerate(output.logits[0]):
        gradients = torch.autograd.grad(logits_V.square().sum(), rows, retain_graph=True)
        moved = torch.cat([g[0].abs().amax(-1) > 0 for g in gradients]).tolist()  # [C + N]
        at = mem_len + i
        assert moved == [at - mem_len < j <= at for j in range(mem_len + 4)]


@pytest.mark.parametrize("around", TOKENS, ids=ids)
@pytest.mark.parametrize("pieces", [[4], [1, 3], [1, 1, 1, 1]])
@pytest.mark.parametrize("mem_len", [1, 3, 9])
def test_same_length_in_pieces_is_same_length(
    mem_len: int, pieces: list[int], around: dict[str, Any]
) -> None:
    model = building.decoder("transformer_xl", same_length=True, mem_len=mem_len, **around)
    tokens_BSN = tokens(2, 3, 4)
    whole = model.recurrent(tokens_BSN, model.init_state(2))
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    assert_equal((logits_BTV.unflatten(1, (3, 4)), state), (whole.logits, whole.state), model)


@pytest.mark.parametrize("around", TOKENS, ids=ids)
@pytest.mark.parametrize(
    "layer_memory,options",
    [
        ("attention", {}),
        ("transformer_xl", {"mem_len": 0}),
        ("memorizing", {"mem_len": 0, "memory_size": 0}),
    ],
)
def test_what_carries_nothing_reads_the_same_in_every_form(
    layer_memory: str, options: dict[str, Any], around: dict[str, Any]
) -> None:
    model, tokens_BSN = building.build(layer_memory, **options, **around), tokens(2, 3, 4)
    assert model.carries == (around["tokens"] == "rmt")
    state = model.recurrent(tokens_BSN, model.init_state(2)).state.detach()
    if model.parallel is not None:
        outputs = [form(tokens_BSN, state) for form in (model.parallel, model.recurrent)]
        assert_equal(*((o.logits, o.state) for o in outputs), model)


@pytest.mark.parametrize("layers", [["attention"], ["full"], ["attention", "full"]], ids=ids)
@pytest.mark.parametrize("read", ["parallel", "recurrent", "pieces"])
def test_a_token_beyond_the_table_of_positions_is_one_clear_error(layers: list[str], read: str) -> None:
    """Where a layer keeps all positions, the table has to be as long as the document."""
    model = building.decoder(layers, positions="learned", max_positions=6)
    forms: dict[str, Callable[[Tensor], ModelState]] = {
        "parallel": lambda x: model.parallel(x, model.init_state(2)).state,
        "recurrent": lambda x: model.recurrent(x, model.init_state(2)).state,
        "pieces": lambda x: building.read_in_pieces(model, x, [2] * (x.shape[2] // 2) + [x.shape[2] % 2])[1],
    }
    forms[read](tokens(2, 1, 6))
    whole_document = "full" in layers
    with pytest.raises(ConfigError, match=r"position 6, .*max_positions=6"):
        forms[read](tokens(2, 1, 7))
    if whole_document:
        with pytest.raises(ConfigError, match="max_positions=6"):
            forms[read](tokens(2, 2, 4))
    else:
        forms[read](tokens(2, 4, 6))
