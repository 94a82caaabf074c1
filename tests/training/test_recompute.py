"""Recomputing activations changes nothing but the memory: for every model of the conformance suite."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.state import State
from memlab.models.base import Model
from memlab.training import truncation
from tests.conformance.test_contract import VOCAB, build, files, options

B, LENGTHS = 3, (4, 4, 4, 2, 4)

every_option = pytest.mark.parametrize(
    ("name", "changed"), [(name, changed) for name in files() for changed in options(name)], ids=str
)
every_model = pytest.mark.parametrize("name", files())


def model_of(name: str, dropout: float, changed: Mapping[str, Any] | None = None) -> Model:
    return build(name, {**(changed or {}), "dropout": dropout}).train()


def tokens() -> Tensor:
    return torch.randint(VOCAB, (B, sum(LENGTHS)), generator=torch.Generator().manual_seed(1))


def begins() -> Tensor:
    """A document begins in some rows at some segments, among them the first."""
    begins_BS = torch.zeros(B, len(LENGTHS), dtype=torch.bool)
    begins_BS[0, 2] = begins_BS[1, 0] = begins_BS[2, 2] = begins_BS[2, 4] = True
    return begins_BS


def nats(model: Model, tokens_BT: Tensor) -> truncation.Keep:
    """A loss whose logits are not kept: of each token itself (an encoder: of the last, behind each segment),
    and two numbers a token.
    """

    def keep(logits_BnV: Tensor, start: int) -> tuple[Tensor, ...]:
        n = logits_BnV.shape[1]
        targets_Bn = (
            tokens_BT[:, -1:].expand(-1, n) if model.answers_once else tokens_BT[:, start : start + n]
        )
        chosen = logits_BnV.log_softmax(-1).gather(2, targets_Bn[..., None]).squeeze(2)
        return chosen, logits_BnV.detach().argmax(-1) == targets_Bn

    return keep


def read(
    model: Model,
    tokens_BT: Tensor,
    lengths: Sequence[int],
    state: Any = None,
    begins_BS: Any = None,
    **how: Any,
) -> truncation.Kept:
    """Read by a plan, of which only what the loss needs is kept."""
    resets = None if begins_BS is None else truncation.resets_of(begins_BS)
    steps = truncation.plan(lengths, resets=resets, **how)
    segments = tokens_BT.split(list(lengths), dim=1)
    return truncation.run(model, segments, steps, nats(model, tokens_BT), state, begins_BS)


def outcome(model: Model, state: State | None, seed: int = 5, **how: Any) -> dict[str, Tensor]:
    """Everything that a reading gives: values, state, diagnostics, and the gradient of every parameter and
    of the carried state.
    """
    torch.manual_seed(seed)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        if tensor.is_floating_point():
            leaves.append(tensor.detach().clone().requires_grad_())
            return leaves[-1]
        return tensor

    start = None if state is None else state.map(leaf)
    kept = read(model, tokens(), LENGTHS, start, begins(), **how)
    wants = [t for t in kept.state.tensors() if t.requires_grad]
    losses = [] if kept.auxiliary is None else [kept.auxiliary]
    weighed = sum(
        (t * torch.linspace(-1, 1, t.numel(), dtype=t.dtype).view_as(t)).sum()
        for t in [kept.values[0], *losses, *wants]
    )
    parameters = dict(model.named_parameters())
    inputs = [*parameters.values(), *leaves]
    found = torch.autograd.grad(weighed, inputs, allow_unused=True)
    gradients = {
        f"gradient {i}": torch.zeros_like(t) if g is None else g
        for i, (t, g) in enumerate(zip(inputs, found, strict=True))
    }
    states = {f"state {i}": t.detach() for i, t in enumerate(kept.state.tensors())}
    return {
        "values": kept.values[0].detach(),
        **{f"auxiliary {i}": loss.detach() for i, loss in enumerate(losses)},
        "right": kept.values[1],
        **states,
        **kept.diagnostics,
        **gradients,
    }


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(
            one[name], other[name], rtol=tolerance, atol=tolerance, msg=lambda m, name=name: f"{name}: {m}"
        )


def in_mid_document(model: Model) -> State:
    torch.manual_seed(4)
    return model(tokens()[:, :8].view(B, 2, 4)).state.detach()


@every_option
def test_recomputed_segments_have_the_numbers_and_gradients_of_the_plain_run(
    name: str, changed: dict[str, Any]
) -> None:
    """Of the parallel form too; one segment at a time and two; carried state, rows that begin a document;
    to float64's precision.
    """
    model = model_of(name, 0.0, changed)
    begun = in_mid_document(model)
    cases = (
        [(None, begun), (1, begun)]
        if changed
        else [(None, begun), (0, None), (1, begun), (None, None), (3, begun)]
    )
    for depth, state in cases:
        if depth is None or model.carries:
            plain = outcome(model, state, depth=depth)
            for together in (1,) if changed else (1, 2):
                assert_same(outcome(model, state, depth=depth, recompute=together), plain, 1e-11)
    assert any(plain[name].abs().max() > 1e-6 for name in plain if name.startswith("gradient"))


@pytest.mark.parametrize(
    ("name", "depth"),
    [(name, depth) for name in files() for depth in (None, 1) if depth is None or build(name, {}).carries],
)
def test_recomputed_segments_are_the_same_with_dropout(
    name: str, depth: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit what the same calls give whose activations are kept: the masks are drawn again as they
    were.
    """
    model = model_of(name, 0.3)
    state = in_mid_document(model)
    recomputed = outcome(model, state, depth=depth, recompute=1)
    other_masks = outcome(model, state, seed=6, depth=depth, recompute=1)
    drawn_behind = torch.rand(1)
    monkeypatch.setattr(
        truncation, "checkpoint", lambda function, *arguments, use_reentrant: function(*arguments)
    )
    kept = outcome(model, state, depth=depth, recompute=1)
    assert_same(recomputed, kept, 0.0)
    assert not torch.equal(other_masks["values"], kept["values"])
    outcome(model, state, seed=6, depth=depth, recompute=1)
    assert torch.equal(torch.rand(1), drawn_behind), "what is drawn after it is the same too"


@every_model
def test_recomputed_blocks_are_the_same_with_dropout(name: str) -> None:
    """Bit for bit, in the form that the model has; alone, and within recomputed segments."""
    model = model_of(name, 0.3)
    for how in ({"depth": None}, {"depth": None, "recompute": 1}, *([{"depth": 1}] if model.carries else [])):
        model.backbone.recompute = False
        kept = outcome(model, in_mid_document(model), **how)
        model.backbone.recompute = True
        assert_same(outcome(model, in_mid_document(model), **how), kept, 0.0)


def reads(monkeypatch: pytest.MonkeyPatch, model: Model, name: str) -> list[int]:
    """Notes each call of a model's method: how many segments."""
    seen: list[int] = []
    method: Callable[..., Any] = getattr(type(model), name)

    def noted(self: Model, tokens_BSN: Tensor, *others: Any) -> Any:
        seen.append(tokens_BSN.shape[1])
        return method(self, tokens_BSN, *others)

    monkeypatch.setattr(type(model), name, noted)
    return seen


def test_how_many_are_recomputed_together() -> None:
    """All have equal lengths here; a document that begins, and another length, begin another call."""
    model = model_of("infini", 0.0)
    assert truncation.together(model) == 4 and truncation.together(model, 3) == 3
    with pytest.MonkeyPatch.context() as monkeypatch:
        seen = reads(monkeypatch, model, "_parallel")
        with torch.no_grad():
            truncation.read(model, torch.zeros(1, 22, dtype=torch.long), [2] * 11, recompute=4)
            assert seen == [4, 4, 3]
            seen.clear()
            truncation.read(model, tokens(), LENGTHS, begins_BS=begins(), recompute=4)
            assert seen == [2, 1, 1, 1]


@pytest.mark.parametrize(("name", "form"), [("rmt", "recurrent"), ("infini", "_parallel")])
def test_each_segment_is_read_alone_and_a_second_time_for_the_gradient(
    name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or else nothing would be recomputed; and without gradient nothing is."""
    model = model_of(name, 0.0)
    seen = reads(monkeypatch, model, form)
    outcome(model, None, recompute=1)
    assert seen == [1] * 2 * len(LENGTHS)
    seen.clear()
    with torch.no_grad():
        read(model, tokens(), LENGTHS, recompute=1)
    assert seen == [1] * len(LENGTHS)


def saved_bytes(model: Model, segments: int, recompute: int) -> int:
    """Bytes that a forward pass leaves for the gradient, each storage once, without the parameters."""
    storages: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in model.parameters()}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    tokens_BT = torch.randint(VOCAB, (B, 4 * segments))
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = read(model, tokens_BT, [4] * segments, recompute=recompute)
    assert kept.values[0].requires_grad
    return sum(storages.values())


def test_a_further_segment_leaves_no_activations_behind() -> None:
    """`suite=memory` measures all that is held; here, what autograd saves outside of the segments."""
    model = model_of("rmt", 0.0)
    growth = {how: saved_bytes(model, 12, how) - saved_bytes(model, 4, how) for how in (0, 1)}
    assert growth[1] < growth[0] / 50
