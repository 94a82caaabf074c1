"""Attention over [remembered ; own] keys, a backbone in pieces, and rows that are wanted."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memlab.layers.attention import KeyValues, MultiHead, causal_mask
from memlab.layers.description import Description
from memlab.layers.norms import Norm, build_norm
from memlab.layers.positions import Rotary, Rotation
from memlab.memories.base import Where
from tests import building

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}
SHAPES: list[dict[str, Any]] = [  # of heads
    {"heads": 3, "kv_heads": 3, "head_width": 4},
    {"heads": 3, "kv_heads": 1, "head_width": 4},
    {"heads": 4, "kv_heads": 2, "head_width": 6},
    {"heads": 1, "kv_heads": 1, "head_width": 2},
]


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def multi_head(positions: Any = "rope", biases: Any = ("qkv", "out"), **shape: int) -> MultiHead:
    torch.manual_seed(0)
    sizes = {"layer": 1, "layers": 1, "width": 12, "ffn_width": 8}
    module = MultiHead(Description(positions=positions, biases=biases, **(sizes | shape))).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter)
    return module


def turned(start: int, end: int, width: int) -> Rotation:
    return Rotary(width).rotation(torch.arange(start, end), torch.float64)


def assert_same_gradients(one: list[Tensor], other: list[Tensor], leaves: list[Tensor]) -> None:
    """Of one random loss over all outputs."""
    losses = [
        torch.stack([(normal(*y.shape).roll(n) * y).sum() for n, y in enumerate(outputs)]).sum()
        for outputs in (one, other)
    ]
    for actual, wanted in zip(*(torch.autograd.grad(total, leaves) for total in losses), strict=True):
        torch.testing.assert_close(actual, wanted, **TOLERANCE)


@pytest.mark.parametrize("biases", [("qkv", "out"), ()], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_each_head_is_softmax_attention_of_its_own_parts(shape: dict[str, int], biases: Any) -> None:
    """Head by head, query by query; neighbouring query heads share a key-value head; values and gradients."""
    module, x_BTD = multi_head(biases=biases, **shape), normal(2, 5, 12).requires_grad_()
    heads, groups, width = module.heads, module.kv_heads, module.head_width
    assert (module.qkv.bias is None) == ("qkv" not in biases) and (module.out.bias is None) == (
        "out" not in biases
    )
    q, k, v = module.project(x_BTD)
    y = module.merge(module.attend(q, k, v))
    projected = x_BTD @ module.qkv.weight.T + (0 if module.qkv.bias is None else module.qkv.bias)
    part = [projected[..., i * width : (i + 1) * width] for i in range(heads + 2 * groups)]
    rows = []
    for b in range(2):
        for t in range(5):
            outputs = []
            for h in range(heads):
                g = heads + h * groups // heads
                scores = [part[h][b, t] @ part[g][b, j] / math.sqrt(width) for j in range(t + 1)]
                weight = torch.stack(scores).softmax(0)
                outputs.append(weight @ part[g + groups][b, : t + 1])
            rows.append(
                module.out.weight @ torch.cat(outputs) + (0 if module.out.bias is None else module.out.bias)
            )
    expected = torch.stack(rows).view(2, 5, 12)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    assert_same_gradients([y], [expected], [x_BTD, *module.parameters()])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_attention_with_a_past_equals_attention_at_once(first: int, shape: dict[str, int]) -> None:
    """Outputs, keys, values, and the gradients of the weights and of the inputs."""
    module, x_BTD = multi_head(**shape), normal(2, 7, 12).requires_grad_()
    q, k, v = module.project(x_BTD, turned(0, 7, module.head_width))
    whole = module.merge(module.attend(q, k, v))
    outputs, seen = [], KeyValues(k[:, :, :0], v[:, :, :0])
    for start, end in ((0, first), (first, 7)):
        turn = turned(start, end, module.head_width)
        q_, *new = module.project(x_BTD[:, start:end], turn)
        seen = seen.then(*new)
        outputs.append(module.merge(module.attend(q_, *seen.tensors())))
    pieces = torch.cat(outputs, dim=1)
    torch.testing.assert_close(pieces, whole, **TOLERANCE)
    for actual, expected in zip(seen.tensors(), (k, v), strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)
    assert_same_gradients([pieces], [whole], [x_BTD, *module.parameters()])


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 4], [2, 1, 4]])
@pytest.mark.parametrize("layer_memory", ["attention", "full"])
def test_a_backbone_read_in_pieces_equals_the_backbone_at_once(layer_memory: str, pieces: list[int]) -> None:
    """With `full`, in the middle of documents that have had different numbers of tokens."""
    model = building.decoder(layer_memory, layers=3)
    backbone, x_BTD = model.backbone, normal(2, 7, 8)
    states = backbone.init_state(2)
    if layer_memory == "full":
        had_B = torch.tensor([5, 11])
        states = tuple(dataclasses.replace(state, length_B=had_B) for state in states)

    def where(start: int, count: int) -> Where:
        return Where(
            start=start,
            count=count,
            batch_size=2,
            device=x_BTD.device,
            rotary=backbone.rotary,
            offset_B=backbone.offset(states),
        )

    opened = backbone.begin(states, where(0, 0))
    whole, kept, *_ = backbone.read("extend", x_BTD, opened, where(0, 7))
    outputs, so_far, start = [], opened, 0
    for x in x_BTD.split(pieces, 1):
        y, so_far, *_ = backbone.read("extend", x, so_far, where(start, x.shape[1]))
        start += x.shape[1]
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **TOLERANCE)
    for one, other in zip(so_far, kept, strict=True):
        for actual, expected in zip(one.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("positions", ["rope", "transformer_xl"])
@pytest.mark.parametrize("wanted", [slice(3, None), slice(2), slice(2, 5), slice(None)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("layer_memory", ["attention", "full", "transformer_xl", "infini", "memorizing"])
def test_rows_that_are_wanted_are_those_of_all_rows(
    layer_memory: str, positions: str, wanted: slice, masked: bool
) -> None:
    """Outputs, what is kept, and all gradients of what is wanted; in the middle of a document."""
    model = building.decoder(layer_memory, layers=2, positions=positions, mem_len=3)
    backbone, x_BTD = model.backbone, normal(2, 7, 8).requires_grad_()
    states = model(building.tokens(2, 2, 3)).state.detach().layers
    where = Where(
        start=-2 if masked else 0,
        count=7,
        first=-2 if masked else 0,
        tokens=slice(2, 5) if masked else slice(None),
        mask=torch.ones(7, 7, dtype=torch.bool).tril(2) if masked else None,
        batch_size=2,
        device=x_BTD.device,
        rotary=backbone.rotary,
        offset_B=backbone.offset(states),
    )
    all_rows, kept, *_ = backbone.read("segment", x_BTD, states, where)
    few, kept_of_few, *_ = backbone.read(
        "segment", x_BTD, states, dataclasses.replace(where, shared={}), wanted
    )
    torch.testing.assert_close(few, all_rows[:, wanted], **TOLERANCE)
    for one, other in zip(kept_of_few, kept, strict=True):
        for actual, expected in zip(one.tensors(), other.tensors(), strict=True):
            torch.testing.assert_close(actual, expected, **TOLERANCE)
    used = [
        p for name, p in model.named_parameters() if not name.startswith(("backbone.embed", "backbone.head"))
    ]
    assert_same_gradients([few], [all_rows[:, wanted]], [x_BTD, *used])


@pytest.mark.parametrize("norm", ["layer", "rms", None])
@pytest.mark.parametrize("positions", ["rope", "transformer_xl"])
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("biases", [("qkv",), ()], ids=str)
def test_projecting_twice_in_one_product_is_projecting_once_with_and_once_without_the_inputs_gradient(
    positions: str, shape: dict[str, int], norm: Any, biases: Any
) -> None:
    module = multi_head(positions, biases, **shape)
    normalise: Norm | None = None if norm is None else build_norm(norm, 12, 1e-5).double()
    learned = [] if normalise is None else list(normalise.parameters())
    for parameter in learned:
        nn.init.normal_(parameter)
    x_BTD = normal(2, 7, 12).requires_grad_()
    turn = turned(3, 10, module.head_width) if positions == "rope" else None
    own, again = module.project_twice(x_BTD, normalise, turn)
    plain = normalise or nn.Identity()
    expected = [*module.project(plain(x_BTD), turn), *module.keys_values(plain(x_BTD.detach()), turn)]
    for actual, wanted in zip([*own, *again], expected, strict=True):
        torch.testing.assert_close(actual, wanted, **TOLERANCE)
    assert_same_gradients([*own, *again], expected, [x_BTD, *learned, *module.qkv.parameters()])


def test_a_mask_says_who_may_look_whether_or_not_there_is_a_past() -> None:
    """True = may look.

    With one key allowed, the output is that key's value, so it is seen whose value arrives.
    """
    module = multi_head("none", heads=1, kv_heads=1, head_width=4)
    x_BTD, targets = normal(1, 5, 12), [4, 0, 0, 2, 1]
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[range(5), targets] = True
    q, k, v = module.project(x_BTD)
    expected = module.out(module.qkv(x_BTD)[..., 8:][:, targets])
    torch.testing.assert_close(module.merge(module.attend(q, k, v, mask)), expected, **TOLERANCE)
    late = module.merge(module.attend(q[:, :, 3:], k, v, mask[3:]))
    torch.testing.assert_close(late, expected[:, 3:], **TOLERANCE)
    some = module.merge(module.attend(q, k, v, mask, wanted=slice(1, 3)))
    torch.testing.assert_close(some, expected[:, 1:3], **TOLERANCE)


def test_the_causal_mask_lets_the_last_tokens_see_all_before_them_and_themselves() -> None:
    assert causal_mask(2, 5, torch.device("cpu")).tolist() == [[True] * 4 + [False], [True] * 5]
    assert causal_mask(3, 3, torch.device("cpu")).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
