"""How rows know where they stand: rotary positions, sinusoids of distances, learned positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from memlab.layers.positions import Rotary, rotate, sinusoids
from tests import building
from tests.building import tokens


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_a_score_depends_on_the_distance_of_positions_alone() -> None:
    """RoFormer, eq. 16: moving query and key by the same number of positions leaves their product as it was;
    the distance matters.
    """
    query, key = normal(2, 1, 1, 1, 6)

    def score(at: int, of: int) -> float:
        turned = [
            rotate(x, Rotary(6).rotation(torch.tensor([p]), torch.float64))
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
    turned = rotate(x, Rotary(6).rotation(torch.tensor([-5]), torch.float64)).flatten().tolist()
    values = x.flatten().tolist()
    for k in range(3):
        number = complex(values[k], values[k + 3]) * complex(
            math.cos(a := -5 / 10_000 ** (2 * k / 6)), math.sin(a)
        )
        assert (turned[k], turned[k + 3]) == pytest.approx((number.real, number.imag), rel=1e-12)
    at_zero = rotate(x, Rotary(6).rotation(torch.tensor([0]), torch.float64))
    assert torch.equal(at_zero, x)


def test_rotations_of_rows_of_positions_are_those_of_each_row() -> None:
    x_BHTK, positions_BT = normal(2, 3, 4, 6), torch.tensor([[0, 1, 2, 3], [7, 9, 2, -4]])
    together = rotate(x_BHTK, Rotary(6).rotation(positions_BT, torch.float64))
    for b in range(2):
        assert torch.equal(
            together[b], rotate(x_BHTK[b : b + 1], Rotary(6).rotation(positions_BT[b], torch.float64))[0]
        )


def test_float32_rotations_stay_exact_a_million_tokens_away() -> None:
    """Angles computed in float32 would be wrong by up to 0.06 there."""
    position, width = 1_000_001, 8
    cos, sin = Rotary(width).rotation(torch.tensor([position]))
    assert cos.dtype == sin.dtype == torch.float32
    # one for each member of a pair
    angles = [position / 10_000 ** (2 * k / width) for k in range(width // 2)] * 2
    assert cos[0].tolist() == pytest.approx([math.cos(a) for a in angles], abs=1e-7)
    assert sin[0].tolist() == pytest.approx([math.sin(a) for a in angles], abs=1e-7)


def test_a_rotated_tensor_keeps_its_dtype() -> None:
    assert (
        rotate(torch.ones(1, 1, 2, 4, dtype=torch.bfloat16), Rotary(4).rotation(torch.arange(2))).dtype
        == torch.bfloat16
    )


@pytest.mark.parametrize("width", [2, 6, 8])
def test_sinusoids_are_sines_then_cosines_of_the_distance_over_10000_to_the_2k_over_width(width: int) -> None:
    wanted = [-30, -1, 0, 1, 2, 77]
    r_WD = sinusoids(torch.tensor(wanted), width, torch.float64)
    assert r_WD.shape == (len(wanted), width)
    for distance, r_D in zip(wanted, r_WD.tolist(), strict=True):
        for k in range(width // 2):
            angle = distance / 10_000 ** (2 * k / width)
            assert (r_D[k], r_D[width // 2 + k]) == pytest.approx(
                (math.sin(angle), math.cos(angle)), abs=1e-12
            )


def test_float32_sinusoids_stay_exact_a_million_tokens_away() -> None:
    """Angles computed in float32 would be wrong by up to 0.06 there."""
    distance, width = 1_000_001, 8
    r_WD = sinusoids(torch.tensor([distance]), width, torch.float32)
    assert r_WD.dtype == torch.float32
    angles = [distance / 10_000 ** (2 * k / width) for k in range(width // 2)]
    assert r_WD[0].tolist() == pytest.approx([f(a) for f in (math.sin, math.cos) for a in angles], abs=1e-7)


@pytest.mark.parametrize("base", [10_000.0, 500_000.0])
def test_rows_that_are_not_to_be_rotated_stay_and_the_base_sets_the_frequencies(base: float) -> None:
    x = normal(1, 1, 2, 4)
    assert rotate(x, None) is x
    cos, sin = Rotary(4, base).rotation(torch.tensor([0, 3]), torch.float64)
    angles = [3.0, 3.0 / base**0.5]
    assert cos[1].tolist() == pytest.approx([math.cos(a) for a in angles * 2], rel=1e-12)
    assert sin[1].tolist() == pytest.approx([math.sin(a) for a in angles * 2], rel=1e-12)
    assert cos[0].tolist() == [1.0] * 4 and sin[0].tolist() == [0.0] * 4


def test_sinusoids_of_an_odd_width_leave_out_the_last_cosine() -> None:
    distance = torch.tensor([4])
    assert sinusoids(distance, 5, torch.float64).shape == (1, 5)
    frequencies = [10_000 ** (-2 * k / 5) for k in range(3)]
    expected = [math.sin(4 * f) for f in frequencies] + [math.cos(4 * f) for f in frequencies[:2]]
    assert sinusoids(distance, 5, torch.float64)[0].tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("layer_memory", ["attention", "full"])
def test_learned_positions_are_added_to_the_embedding(layer_memory: str) -> None:
    """Each segment counts from 0, unless a layer sees the whole document.

    Moving what was learned of one position by a number moves the embeddings of its tokens by it.
    """
    model = building.decoder(layer_memory, positions="learned", max_positions=9)
    tokens_BSN, rows = tokens(2, 2, 4), []
    model.backbone.blocks[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0]))
    model.recurrent(tokens_BSN, model.init_state(2))
    for s, x_BND in enumerate(rows):
        first = 4 * s if layer_memory == "full" else 0
        learned_ND = model.backbone.learned_positions.weight[first : first + 4]
        torch.testing.assert_close(x_BND, model.backbone.embed(tokens_BSN[:, s]) + learned_ND)
