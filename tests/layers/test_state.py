"""Every operation on carried state, on a state that has all that a state may have: tensors, a state within,
a tuple of states.
"""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor

from memlab.layers.state import Empty, State, state


@state
class Slots(State):
    values_BMD: Tensor
    count_B: Tensor


@state
class Whole(State):
    """A tensor, a state, a tuple of states, a tuple of nothing."""

    memory_BD: Tensor
    inner: Slots
    layers: tuple[Slots, ...]
    none: tuple[Slots, ...]


@state
class Growing(State):
    """Rows of which each document owns the last few."""

    rows_BPD: Tensor
    owned_B: Tensor

    def reset(self, rows_B: Tensor, initial: Growing) -> Growing:
        return Growing(self.rows_BPD, self.owned_B.masked_fill(rows_B, 0))


@state
class Model(State):
    """A state that is reset in its own way, within another and in a tuple."""

    inner: Growing
    layers: tuple[Growing | Slots, ...]


def slots(batch: int, start: float = 0.0) -> Slots:
    values = torch.arange(batch * 6, dtype=torch.float32).view(batch, 2, 3) + start
    return Slots(values, torch.arange(batch) + int(start))


def whole(batch: int = 3, start: float = 0.0) -> Whole:
    memory = torch.arange(batch * 5, dtype=torch.float64).view(batch, 5) + start
    return Whole(
        memory, slots(batch, start + 100), (slots(batch, start + 200), slots(batch, start + 300)), ()
    )


def test_tensors_come_in_the_order_of_the_fields() -> None:
    s = whole()
    expected = [s.memory_BD, s.inner.values_BMD, s.inner.count_B]
    expected += [s.layers[0].values_BMD, s.layers[0].count_B, s.layers[1].values_BMD, s.layers[1].count_B]
    assert [id(t) for t in s.tensors()] == [id(t) for t in expected]


def test_a_state_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        whole().memory_BD = torch.zeros(1)  # type: ignore[misc]


def test_map_applies_to_every_tensor_and_keeps_the_structure() -> None:
    mapped = whole().map(lambda t: t + 1)
    assert (
        isinstance(mapped, Whole)
        and isinstance(mapped.inner, Slots)
        and isinstance(mapped.layers, tuple)
        and mapped.none == ()
    )
    for before, after in zip(whole().tensors(), mapped.tensors(), strict=True):
        assert torch.equal(after, before + 1)


def test_detach_cuts_the_gradient_of_every_floating_tensor_and_no_value() -> None:
    live = whole().map(lambda t: t.clone().requires_grad_() * 2 if t.is_floating_point() else t)
    assert sum(t.requires_grad for t in live.tensors()) == 4
    cut = live.detach()
    assert not any(t.requires_grad for t in cut.tensors())
    for before, after in zip(live.tensors(), cut.tensors(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("rows", [[False, False, False], [True, False, True], [True, True, True]])
def test_reset_takes_the_chosen_rows_from_the_initial_state(rows: list[bool]) -> None:
    current, initial = whole(), whole(start=1000)
    for before, fresh, after in zip(
        current.tensors(),
        initial.tensors(),
        current.reset(torch.tensor(rows), initial).tensors(),
        strict=True,
    ):
        assert after.dtype == before.dtype
        for row, anew in enumerate(rows):
            assert torch.equal(after[row], fresh[row] if anew else before[row])


def test_reset_sends_the_gradient_of_each_row_where_the_row_came_from() -> None:
    """Of the chosen rows into the initial state (a learned initial memory),
    of the others into the current one.
    """
    current, learned = torch.randn(3, 2, 4, requires_grad=True), torch.randn(2, 4, requires_grad=True)
    counts = torch.zeros(3)
    after = Slots(current, counts).reset(
        torch.tensor([True, False, True]), Slots(learned.expand(3, -1, -1), counts)
    )
    weights = torch.randn(3, 2, 4)
    (weights * after.values_BMD).sum().backward()
    assert torch.equal(learned.grad, weights[0] + weights[2])
    assert torch.equal(current.grad, weights * torch.tensor([0.0, 1.0, 0.0])[:, None, None])


def test_a_state_within_another_is_reset_in_its_own_way() -> None:
    def growing(rows: int) -> Growing:
        return Growing(torch.ones(3, rows, 2), torch.full((3,), rows))

    current = Model(growing(5), (growing(5), slots(3)))
    initial = Model(growing(0), (growing(0), slots(3, start=1000)))
    after = current.reset(torch.tensor([True, False, True]), initial)
    for one in (after.inner, after.layers[0]):
        assert isinstance(one, Growing)
        assert one.rows_BPD.shape == (3, 5, 2) and one.owned_B.tolist() == [0, 5, 0]
    assert after.layers[1].tensors()[1].tolist() == [1000, 1, 1002]


def test_nbytes_counts_every_tensor_at_its_own_dtype() -> None:
    """3 rows of 5 doubles, and three times 3 rows of 6 floats and one long."""
    assert whole(3).nbytes == 3 * 5 * 8 + 3 * (3 * 6 * 4 + 3 * 8)
    assert whole(3).map(lambda t: t.bfloat16()).nbytes == 2 * (3 * 5 + 3 * (3 * 6 + 3))
    assert Empty().nbytes == 0


def test_a_saved_state_comes_back_the_same() -> None:
    """Through a file that holds no code: `torch.load(weights_only=True)` refuses anything but plain
    containers of tensors.
    """
    file = io.BytesIO()
    torch.save(whole().to_dict(), file)
    file.seek(0)
    restored = whole(start=7).from_dict(torch.load(file, weights_only=True))
    assert isinstance(restored, Whole) and isinstance(restored.inner, Slots)
    assert (
        isinstance(restored.layers, tuple)
        and all(isinstance(layer, Slots) for layer in restored.layers)
        and restored.none == ()
    )
    for saved, loaded in zip(whole().tensors(), restored.tensors(), strict=True):
        assert saved.dtype == loaded.dtype and torch.equal(saved, loaded)
    assert Empty().from_dict(Empty().to_dict()) == Empty()


def test_another_models_state_is_refused_with_the_fields_of_both_named() -> None:
    with pytest.raises(ValueError, match="Whole") as error:
        whole().from_dict(slots(3).to_dict())
    for field in ("values_BMD", "count_B", "memory_BD", "inner", "layers", "none"):
        assert field in str(error.value)
    with pytest.raises(ValueError, match="Empty"):
        Empty().from_dict(slots(3).to_dict())
    with pytest.raises(ValueError, match="Slots"):
        slots(3).from_dict({})
    saved = whole().to_dict()
    del saved["layers"][1]["count_B"]
    with pytest.raises(ValueError, match="Slots"):
        whole().from_dict(saved)


def test_another_number_of_layers_is_refused() -> None:
    saved = whole().to_dict()
    del saved["layers"][1]
    with pytest.raises(ValueError):
        whole().from_dict(saved)
    with pytest.raises(ValueError):
        whole().from_dict(whole().to_dict() | {"none": [slots(3).to_dict()]})
