"""Attention over [past ; own] keys, the decoder stack in pieces, and rotary positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from memlab.layers.attention import Attention, KeyValues, causal_mask
from memlab.layers.blocks import Block, Stack, initialise
from memlab.layers.positions import rotate, rotation

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("first", [0, 1, 4, 6])
def test_attention_with_a_past_equals_attention_at_once(first: int) -> None:
    """Outputs, keys, values, and the gradients of the weights and of the inputs."""
    torch.manual_seed(0)
    attention = Attention(width=12, heads=3).double()
    x_BTD, weights = normal(2, 7, 12).requires_grad_(), normal(2, 7, 12).flip(1)

    def turn(start: int, end: int) -> tuple[Tensor, Tensor]:
        return rotation(torch.arange(start, end), 4, dtype=torch.float64)

    whole, kept = attention(x_BTD, turn(0, 7), None, None)
    before, past = attention(x_BTD[:, :first], turn(0, first), None, None) if first else (x_BTD[:, :0], None)
    after, kept_in_pieces = attention(x_BTD[:, first:], turn(first, 7), None, past)
    pieces = torch.cat([before, after], dim=1)
    torch.testing.assert_close(pieces, whole, **TOLERANCE)
    for actual, expected in zip(kept_in_pieces.tensors(), kept.tensors(), strict=True):
        torch.testing.assert_close(actual, expected, **TOLERANCE)
    leaves = [x_BTD, *attention.parameters()]
    for actual, expected in zip(
        *(torch.autograd.grad((weights * y).sum(), leaves) for y in (pieces, whole)), strict=True
    ):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 4], [2, 1, 4]])
@pytest.mark.parametrize("rows_have_their_own_positions", [False, True])
def test_a_stack_read_in_pieces_equals_the_stack_at_once(
    pieces: list[int], rows_have_their_own_positions: bool
) -> None:
    torch.manual_seed(0)
    stack = Stack(layers=3, width=8, heads=2, ffn_width=16, dropout=0.0).double()
    x_BTD, positions = normal(2, 7, 8), torch.arange(5, 12)
    if rows_have_their_own_positions:
        positions = torch.stack([positions, positions * 3])
    whole, kept = stack(x_BTD, positions)
    outputs: list[Tensor] = []
    past: tuple[KeyValues, ...] = ()
    for x, p in zip(x_BTD.split(pieces, 1), positions.split(pieces, -1), strict=True):
        y, past = stack(x, p, past=past)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, 1), whole, **TOLERANCE)
    for actual, expected in zip(past, kept, strict=True):
        torch.testing.assert_close(actual.keys_BHPK, expected.keys_BHPK, **TOLERANCE)
        torch.testing.assert_close(actual.values_BHPK, expected.values_BHPK, **TOLERANCE)


@pytest.mark.parametrize("positions", ["rope", "transformer_xl"])
@pytest.mark.parametrize("rows", [slice(3, None), slice(2), slice(2, 5), slice(None)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_rows_that_are_wanted_are_those_of_all_rows(positions: str, rows: slice, masked: bool) -> None:
    """Outputs, what is kept, and all gradients of what is wanted."""
    torch.manual_seed(0)
    stack = Stack(layers=3, width=8, heads=2, ffn_width=16, dropout=0.0, positions=positions).double()
    initialise(stack, layers=3)
    if stack.distance_biases is not None:
        torch.nn.init.normal_(stack.distance_biases)
    x_BTD = normal(2, 7, 8).requires_grad_()
    mask = torch.ones(7, 7, dtype=torch.bool).tril(2) if masked else None
    all_rows, kept = stack(x_BTD, torch.arange(7), mask)
    few, kept_of_few = stack(x_BTD, torch.arange(7), mask, rows=rows)
    torch.testing.assert_close(few, all_rows[:, rows], **TOLERANCE)
    for actual, expected in zip(kept_of_few, kept, strict=True):
        torch.testing.assert_close(actual.keys_BHPK, expected.keys_BHPK, **TOLERANCE)
        torch.testing.assert_close(actual.values_BHPK, expected.values_BHPK, **TOLERANCE)
    weights, leaves = normal(*few.shape).flip(1), [x_BTD, *stack.parameters()]
    for actual, expected in zip(
        *(torch.autograd.grad((weights * y).sum(), leaves) for y in (few, all_rows[:, rows])), strict=True
    ):
        torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("positions", ["rope", "transformer_xl"])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_projecting_twice_in_one_product_is_projecting_once_with_and_once_without_the_inputs_gradient(
    positions: str, kv_heads: int
) -> None:
    torch.manual_seed(0)
    block = Block(Attention(12, 3, kv_heads, positions), ffn_width=8, dropout=0.0).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter)
    x_BTD = normal(2, 7, 12).requires_grad_()
    turn = rotation(torch.arange(3, 10), 4, dtype=torch.float64) if positions == "rope" else None
    own, again = block.project_twice(x_BTD, turn)
    expected = [*block.project(x_BTD, turn), *block.keys_values(x_BTD.detach(), turn)]
    leaves = [x_BTD, *block.attention_norm.parameters(), *block.attention.qkv.parameters()]
    sums = [
        sum((normal(*y.shape).roll(n) * y).sum() for n, y in enumerate(outputs))
        for outputs in ([*own, *again], expected)
    ]
    for actual, wanted in zip([*own, *again], expected, strict=True):
        torch.testing.assert_close(actual, wanted, **TOLERANCE)
    for actual, wanted in zip(*(torch.autograd.grad(total, leaves) for total in sums), strict=True):
        torch.testing.assert_close(actual, wanted, **TOLERANCE)


def test_a_mask_says_who_may_look_whether_or_not_there_is_a_past() -> None:
    """True = may look. With one key allowed, the output is that key's value,
    so it is seen whose value arrives.
    """
    torch.manual_seed(0)
    attention = Attention(width=4, heads=1).double()
    x_BTD, turn = normal(1, 5, 4), rotation(torch.zeros(5, dtype=torch.long), 4, dtype=torch.float64)
    targets = [4, 0, 0, 2, 1]
    mask = torch.zeros(5, 5, dtype=torch.bool)
    mask[range(5), targets] = True
    values_BTD = attention.qkv(x_BTD)[..., 8:]
    expected = attention.out(values_BTD[:, targets])
    torch.testing.assert_close(attention(x_BTD, turn, mask, None)[0], expected, **TOLERANCE)
    few = (turn[0][:2], turn[1][:2])
    _, past = attention(x_BTD[:, :3], (turn[0][:3], turn[1][:3]), None, None)
    torch.testing.assert_close(attention(x_BTD[:, 3:], few, mask[3:], past)[0], expected[:, 3:], **TOLERANCE)


def test_the_causal_mask_lets_the_last_tokens_see_all_before_them_and_themselves() -> None:
    assert causal_mask(2, 5, torch.device("cpu")).tolist() == [[True] * 4 + [False], [True] * 5]
    assert causal_mask(3, 3, torch.device("cpu")).tolist() == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


def test_a_score_depends_on_the_distance_of_positions_alone() -> None:
    """RoFormer, eq. 16: moving query and key by the same number of positions leaves their product as it was;
    the distance matters.
    """
    query, key = normal(2, 1, 1, 1, 6)

    def score(at: int, of: int) -> float:
        turned = [
            rotate(x, rotation(torch.tensor([p]), 6, dtype=torch.float64))
            for x, p in ((query, at), (key, of))
        ]
        return float((turned[0] * turned[1]).sum())

    for distance in (-4, 0, 3, 1000):
        for shift in (-7, 1, 12, 100_000):
            assert score(distance + shift, shift) == pytest.approx(score(distance, 0), rel=1e-9, abs=1e-9)
    assert abs(score(3, 0) - score(4, 0)) > 1e-3
    assert abs(score(3, 0) - score(0, 3)) > 1e-3


def test_a_rotation_turns_pair_k_by_the_position_over_10000_to_the_2k_over_width() -> None:
    x = normal(1, 1, 1, 6)
    turned = rotate(x, rotation(torch.tensor([-5]), 6, dtype=torch.float64)).flatten().tolist()
    values = x.flatten().tolist()
    for k in range(3):
        number = complex(values[k], values[k + 3]) * complex(
            math.cos(a := -5 / 10_000 ** (2 * k / 6)), math.sin(a)
        )
        assert (turned[k], turned[k + 3]) == pytest.approx((number.real, number.imag), rel=1e-12)
    at_zero = rotate(x, rotation(torch.tensor([0]), 6, dtype=torch.float64))
    assert torch.equal(at_zero, x)


def test_rotations_of_rows_of_positions_are_those_of_each_row() -> None:
    x_BHTK, positions_BT = normal(2, 3, 4, 6), torch.tensor([[0, 1, 2, 3], [7, 9, 2, -4]])
    together = rotate(x_BHTK, rotation(positions_BT, 6, dtype=torch.float64))
    for b in range(2):
        assert torch.equal(
            together[b], rotate(x_BHTK[b : b + 1], rotation(positions_BT[b], 6, dtype=torch.float64))[0]
        )


def test_float32_rotations_stay_exact_a_million_tokens_away() -> None:
    """Angles computed in float32 would be wrong by up to 0.06 there."""
    position, width = 1_000_001, 8
    cos, sin = rotation(torch.tensor([position]), width)
    assert cos.dtype == sin.dtype == torch.float32
    # one for each member of a pair
    angles = [position / 10_000 ** (2 * k / width) for k in range(width // 2)] * 2
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-7)
    assert sin[0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-7)


def test_a_rotated_tensor_keeps_its_dtype() -> None:
    assert (
        rotate(torch.ones(1, 1, 2, 4, dtype=torch.bfloat16), rotation(torch.arange(2), 4)).dtype
        == torch.bfloat16
    )


def test_weights_begin_at_the_scale_of_their_fan_in() -> None:
    """GPT-2's scheme: residual outputs smaller by sqrt(2 * layers), so that the sum over layers does not
    grow; biases 0.
    """
    torch.manual_seed(0)
    stack = Stack(layers=8, width=64, heads=2, ffn_width=256, dropout=0.0)
    initialise(stack, layers=8)
    block = stack.blocks[3]
    for weight, std in (
        (block.attention.qkv.weight, 64**-0.5),
        (block.attention.out.weight, 64**-0.5 / 4),
        (block.ffn[0].weight, 64**-0.5),
        (block.ffn[2].weight, 256**-0.5 / 4),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not block.ffn[0].bias.any() and not block.ffn[2].bias.any()


def test_half_of_the_heads_begin_by_position_and_half_by_content() -> None:
    """Scores of the first kind depend on the distance alone where the input says nothing;
    the second kind prefers its like.
    """
    torch.manual_seed(0)
    stack = Stack(layers=1, width=32, heads=4, ffn_width=32, dropout=0.0)
    initialise(stack, layers=1)
    query, key, _ = stack.blocks[0].attention.qkv.weight.unflatten(0, (3, 4, 8))
    query_bias, key_bias, value_bias = stack.blocks[0].attention.qkv.bias.unflatten(0, (3, 4, 8))
    assert torch.equal(query[2:], key[2:]) and not (query[:2] == key[:2]).any()
    assert query_bias[:2].all() and key_bias[:2].all()
    assert not query_bias[2:].any() and not key_bias[2:].any() and not value_bias.any()
