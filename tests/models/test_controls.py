"""`model.memory=off` and `shuffled`, which mean the same for every memory.

off: each segment is read after the initial state. shuffled: each is read after the state of another document
of the batch, as that one's own plain reading left it.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.state import State
from memlab.models.base import Model
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive

MODELS: dict[str, dict[str, Any]] = {
    "transformer": {"layer_memory": "attention"},
    "full": {"layer_memory": "full"},
    "transformer_xl": {"layer_memory": "transformer_xl", "mem_len": 5, "positions": "transformer_xl"},
    "infini": {"layer_memory": "infini", "update": "delta"},
    "memorizing": {"layer_memory": "memorizing", "mem_len": 2, "memory_size": 7, "top_k": 3},
    "front": {"layer_memory": "attention", "tokens": "front", "memory_tokens": 2},
    "rmt": {"layer_memory": "attention", "tokens": "rmt", "memory_tokens": 2},
    "rmt_encoder": {"layer_memory": "attention", "tokens": "rmt_encoder", "memory_tokens": 2},
    "rmt over xl": {"layer_memory": "transformer_xl", "tokens": "rmt", "memory_tokens": 2, "mem_len": 4},
    "rmt over infini and memorizing": {
        "layer_memory": ["infini", "memorizing"],
        "tokens": "rmt",
        "memory_tokens": 2,
        "mem_len": 2,
    },
}
REMEMBERING = [name for name in MODELS if name not in ("transformer", "front")]
DECODERS = [name for name in MODELS if name != "rmt_encoder"]


def build(name: str, memory: str) -> Model:
    return building.build(**(MODELS[name] | {"memory": memory}))


def assert_same_state(one: State, other: State) -> None:
    assert type(one) is type(other)
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def forms(model: Model) -> list[Any]:
    return [model.recurrent, *([model.parallel] if model.parallel is not None else [])]


def segment_by_segment(model: Model, tokens_BSN: Tensor) -> tuple[Tensor, Any]:
    """By `segment`, as an evaluation reads: logits and the last state."""
    state, logits = model.init_state(len(tokens_BSN)), []
    for tokens_BN in tokens_BSN.unbind(1):
        output = model.segment(tokens_BN, state)
        state = output.state
        logits.append(output.logits)
    return torch.stack(logits, 1), state


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [1, 3])
def test_off_reads_each_segment_after_the_initial_state(name: str, batch: int) -> None:
    """In every form, values and gradients; nothing is carried, whatever state comes in."""
    model, plain, tokens_BSN = build(name, "off"), build(name, "on"), tokens(batch, 3, 4)
    plain.load_state_dict(model.state_dict())
    expected = torch.stack(
        [plain.segment(tokens_BN, plain.init_state(batch)).logits for tokens_BN in tokens_BSN.unbind(1)], 1
    )
    before = plain(tokens(batch, 2, 3, seed=5)).state
    assert not model.carries and not model.state_grows and not model.keeps_everything
    for read in forms(model):
        for state in (model.init_state(batch), before):
            output = read(tokens_BSN, state)
            torch.testing.assert_close(output.logits, expected, rtol=1e-10, atol=1e-12)
            assert_same_state(output.state, model.init_state(batch))
    logits, state = segment_by_segment(model, tokens_BSN)
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    assert_same_state(state, model.init_state(batch))
    weights = naive.random_like(expected)[0]
    (wanted, *found) = (
        torch.autograd.grad(
            (weights * y).sum(), list(of.parameters()), allow_unused=True, materialize_grads=True
        )
        for y, of in [(expected, plain), *((read(tokens_BSN, before).logits, model) for read in forms(model))]
    )
    for gradients in found:
        for (parameter, _), a, e in zip(model.named_parameters(), gradients, wanted, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch", [2, 3, 4])
def test_shuffled_reads_after_the_state_of_the_document_before(name: str, batch: int) -> None:
    """Its own state is that of its own plain reading, whichever state its logits came from."""
    model, plain, tokens_BSN = build(name, "shuffled"), build(name, "on"), tokens(batch, 5, 3)
    state, logits = plain.init_state(batch), []
    for tokens_BN in tokens_BSN.unbind(1):
        others = plain.exchanged(state, torch.arange(batch) - 1)
        logits.append(plain.segment(tokens_BN, others).logits)
        state = plain.segment(tokens_BN, state).state
    assert model.carries == plain.carries and model.state_grows == plain.state_grows
    for read in forms(model):
        output = read(tokens_BSN, model.init_state(batch))
        torch.testing.assert_close(output.logits, torch.stack(logits, 1), rtol=1e-10, atol=1e-12)
        assert_same_state(output.state, state)
    assert (name in REMEMBERING) == bool((plain(tokens_BSN).logits - output.logits).abs().max() > 1e-6)


@pytest.mark.parametrize("name", REMEMBERING)
@pytest.mark.parametrize(("batch", "segments"), [(2, 5), (3, 5), (4, 6)])
def test_shuffled_never_depends_on_a_documents_own_earlier_segments(
    name: str, batch: int, segments: int
) -> None:
    """Neither its values, whichever earlier token changes, nor by a gradient, which is exactly zero.

    More segments than documents: what is handed round the batch never comes back to its own document.
    """
    model, tokens_BSN = build(name, "shuffled"), tokens(batch, segments, 2)
    whole = model(tokens_BSN).logits
    for b in range(batch):
        moved_BSN = tokens_BSN.clone()
        moved_BSN[b, :-1] = (tokens_BSN[b, :-1] + 1) % VOCABULARY
        moved = model(moved_BSN).logits
        assert torch.equal(moved[b, -1], whole[b, -1])
        reader = (b + 1) % batch  # whose last segment is read after what b remembers
        assert (moved[reader, -1] - whole[reader, -1]).abs().max() > 1e-6

    # The embedding of each document's earlier segments is a copy of its own, and so is its gradient.
    embed, copies = model.backbone.embed, []

    def copied(_: Any, ids: tuple[Tensor], y: Tensor) -> Tensor:
        copies.append(y)
        y.retain_grad()
        return y

    handle = embed.register_forward_hook(copied)
    last = model.recurrent(tokens_BSN, model.init_state(batch)).logits[:, -1]
    handle.remove()
    for b in range(batch):
        found = torch.autograd.grad(last[b].square().sum(), copies, retain_graph=True, allow_unused=True)
        for gradient in found[:-2]:  # the last segment is read twice, for the state and after another's
            assert gradient is None or (gradient[b] == 0).all()
        assert found[-1] is not None and (found[-1][b] != 0).any()


@pytest.mark.parametrize("name", REMEMBERING)
def test_shuffled_alone_begins_anew(name: str) -> None:
    """A batch of one has no other document: its memory would be its own, so it is the initial state."""
    model, off, tokens_BSN = build(name, "shuffled"), build(name, "off"), tokens(1, 4, 3)
    torch.testing.assert_close(model(tokens_BSN).logits, off(tokens_BSN).logits, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", REMEMBERING)
def test_a_document_that_begins_among_others_is_shuffled_like_them(name: str) -> None:
    """The row that is reset hands on the initial state, and reads after the state of the row before it."""
    model, plain, tokens_BSN = build(name, "shuffled"), build(name, "on"), tokens(3, 4, 3)
    rows = torch.tensor([False, True, False])
    first = model(tokens_BSN[:, :2])
    second = model(tokens_BSN[:, 2:], first.state.reset(rows, model.init_state(3)))
    state = plain(tokens_BSN[:, :2]).state
    state = state.reset(rows, plain.init_state(3))
    for s in (2, 3):
        others = plain.exchanged(state, torch.tensor([2, 0, 1]))
        expected = plain.segment(tokens_BSN[:, s], others).logits
        torch.testing.assert_close(second.logits[:, s - 2], expected, rtol=1e-10, atol=1e-12)
        state = plain.segment(tokens_BSN[:, s], state).state
    assert_same_state(second.state, state)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("memory", ["off", "shuffled"])
@pytest.mark.parametrize("pieces", [[1, 1, 1, 1], [3, 1]])
def test_pieces_of_a_segment_are_read_under_the_same_control(
    name: str, memory: str, pieces: list[int]
) -> None:
    model, tokens_BSN = building.decoder(**(MODELS[name] | {"memory": memory})), tokens(3, 3, 4)
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    whole = model.recurrent(tokens_BSN, model.init_state(3))
    torch.testing.assert_close(logits_BTV, whole.logits.flatten(1, 2), rtol=1e-10, atol=1e-12)
    assert_same_state(state, whole.state)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("memory", ["off", "shuffled"])
def test_stream_reads_under_the_same_control(name: str, memory: str) -> None:
    """In calls that end within a segment and go on there."""
    model, tokens_BSN = build(name, memory), tokens(3, 3, 4)
    whole = model.recurrent(tokens_BSN, model.init_state(3))
    state, closed = None, []
    for part in tokens_BSN.flatten(1).split([3, 6, 3], dim=1):
        for piece in model.stream(part, state, segment_length=4):
            state = piece.state
            closed.append(piece.logits)
    assert state is not None
    found = torch.cat(closed, dim=1)
    if model.answers_once:  # an answer after each piece: of 3 tokens, 1 (ends), 4 (ends), 1, 3 (ends)
        found = found[:, [1, 2, 4]]
    torch.testing.assert_close(found, whole.logits.flatten(1, 2), rtol=1e-10, atol=1e-12)
    assert_same_state(state, whole.state)


@pytest.mark.parametrize("name", REMEMBERING)
def test_exchanged_is_the_state_of_the_same_documents_in_another_order(name: str) -> None:
    """What is read after it is what the documents would read that the state is of."""
    model, tokens_BSN, order = build(name, "on"), tokens(3, 2, 4), torch.tensor([2, 2, 0])
    state, next_BN = model(tokens_BSN).state, tokens(3, 4, seed=7)
    exchanged = model.exchanged(state, order)
    assert_same_state(exchanged, model(tokens_BSN[order]).state)
    after = model.segment(next_BN, exchanged)
    assert_same_state(after.state, model.segment(next_BN, model(tokens_BSN[order]).state).state)
    assert exchanged.batch_size == 3
