"""Looking inside: numbers against attention written out by hand, and models that compute what they always
do.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.errors import ConfigError
from memlab.evaluation import inside
from memlab.layers import memory_tokens
from memlab.layers.positions import rotate
from memlab.models.base import Model
from memlab.models.infini import Infini
from memlab.models.memorizing import Memorizing
from memlab.models.rmt import RMT
from memlab.models.rmt_encoder import RMTEncoder
from memlab.models.rmt_xl import RMTXL
from memlab.models.transformer import Transformer
from memlab.models.transformer_xl import TransformerXL
from memlab.tasks.copy import Copy

SIZES: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "dropout": 0.0}
XL: dict[str, Any] = {
    "mem_len": 4,
    "eval_mem_len": None,
    "same_length": False,
    "clamp_len": None,
    "untie": False,
}
KNN: dict[str, Any] = {
    "mem_len": 2,
    "memory_size": 9,
    "top_k": 3,
    "scale_init": 5.0,
    "gate_init": 0.7,
    "memory": "on",
}
MODELS: dict[str, Any] = {
    "rmt": lambda **own: RMT(memory_tokens=3, **own),
    "rmt_encoder": lambda **own: RMTEncoder(memory_tokens=3, **own),
    "rmt_xl": lambda **own: RMTXL(memory_tokens=3, mem_len=4, read_mem_from_cache=True, **own),
    "transformer_xl": lambda **own: TransformerXL(**XL, **own),
    "transformer_xl_relative": lambda **own: TransformerXL(**XL, positions="transformer_xl", **own),
    "full": lambda **own: Transformer(context="full", **own),
    "infini": lambda **own: Infini(update="delta", gate_init=0.7, memory="on", **own),
    "memorizing": lambda **own: Memorizing(memory_layer=1, kv_heads=1, **KNN, **own),
}
KINDS = {
    "rmt": {"memory_tokens"},
    "rmt_encoder": {"memory_tokens"},
    "rmt_xl": {"memory_tokens", "cache"},
    "infini": {"gated"},
}
KINDS |= {"memorizing": {"cache", "gated"}}
TASK = Copy(
    length=5,
    symbols=6,
    num_segments=3,
    segment_lengths=None,
    align=None,
    batch_size=4,
    validation_size=8,
    test_size=9,
)


def build(name: str) -> Any:
    torch.manual_seed(0)
    return MODELS[name](vocab_size=TASK.vocab_size, **SIZES).double().eval()


def segments() -> list[Tensor]:
    return list(
        torch.from_numpy(TASK.batch("test", 0, 4).tokens_BT.copy()).split(TASK.segment_lengths, dim=1)
    )


def states(model: Model) -> list[Any]:
    """Before each segment, and behind the last."""
    found = [model.init_state(4)]
    for tokens_BN in segments():
        found.append(model.segment(tokens_BN, found[-1]).state)
    return found


@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_changed_and_everything_is_seen(name: str) -> None:
    model = build(name)
    watching = inside.Watching(model, 3)
    logits = watching.read(TASK.batch("test", 0, 4))
    with torch.inference_mode():
        for seen, tokens_BN, state in zip(logits, segments(), states(model), strict=False):
            assert torch.equal(seen, model.segment(tokens_BN, state).logits)
    found = watching.found()
    assert found["memory_share"].keys() == KINDS.get(name, {"cache"})
    for kind, share in found["memory_share"].items():
        values = torch.tensor(share["values"])
        assert values.shape == (3, 1 if name == "memorizing" and kind == "gated" else 2, 2)
        assert (values[1:] > 0).all() and (values <= 1).all()
        assert kind == "memory_tokens" or not values[0].any(), (
            "nothing has been read before the first segment"
        )
    assert (found["similarity"] is not None) == name.startswith("rmt")
    assert (found["retrieval"] is not None) == (name == "memorizing")


def softmax(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)


@torch.no_grad()
def test_attention_to_read_memory() -> None:
    model = build("rmt")
    found = inside.look(model, TASK, 4)["memory_share"]["memory_tokens"]["values"]
    m, block = 3, model.stack.blocks[0]
    for s, (tokens_BN, state) in enumerate(zip(segments(), states(model), strict=False)):
        n = tokens_BN.shape[1]
        q, k, _ = block.project(
            torch.cat([state.memory_BMD, model.embed(tokens_BN), state.memory_BMD], dim=1)
        )
        turn = model.stack.turn(memory_tokens.positions(m, n, m, model.device), q.dtype)
        weight = softmax(rotate(q, turn), rotate(k, turn), memory_tokens.mask(m, n, m, model.device))
        expected = weight[:, :, m : m + n, :m].sum(-1).mean((0, 2))
        torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), expected)


@torch.no_grad()
def test_attention_to_the_cache() -> None:
    model = build("transformer_xl")
    found = inside.look(model, TASK, 4)["memory_share"]["cache"]["values"]
    block, c = model.stack.blocks[0], 4
    for s, (tokens_BN, state) in enumerate(zip(segments(), states(model), strict=False)):
        n = tokens_BN.shape[1]
        q, k, _ = block.project(torch.cat([state.hidden[0], model.embed(tokens_BN)], dim=1))
        turn = model.stack.turn(torch.arange(-c, n), q.dtype)
        mask = torch.ones(n, c + n, dtype=torch.bool).tril(c)
        mask[:, : c - min(c, s * n)] = False
        expected = softmax(rotate(q, turn)[:, :, c:], rotate(k, turn), mask)[..., :c].sum(-1).mean((0, 2))
        torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), expected)


@torch.no_grad()
def test_share_of_a_gated_memory() -> None:
    model = build("infini")
    model.gate_LH[0, 1] = -1.0
    found = inside.look(model, TASK, 4)["memory_share"]["gated"]["values"]
    s, block = 2, model.stack.blocks[0]
    tokens_BN, state = segments()[s], states(model)[s].layers[0]
    q, k, v = block.project(model.embed(tokens_BN))
    n = tokens_BN.shape[1]
    turn = model.stack.turn(torch.arange(n), q.dtype)
    local = softmax(rotate(q, turn), rotate(k, turn), torch.ones(n, n, dtype=torch.bool).tril()) @ v
    feature = F.elu(q) + 1
    remembered = (feature @ state.M_BGKK) / (feature @ state.z_BGK[..., None])
    gate = model.gate_LH[0].sigmoid().view(-1, 1)
    a, b = gate * remembered.norm(dim=-1), (1 - gate) * local.norm(dim=-1)
    torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), (a / (a + b)).mean((0, 2)))


@torch.no_grad()
def test_how_far_back_keys_are_retrieved() -> None:
    model = build("memorizing")
    found = inside.look(model, TASK, 4)["retrieval"]
    counts, attention = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.double)
    for tokens_BN, state in zip(segments(), states(model), strict=False):
        q, _, _ = model.stack.blocks[0].project(model.embed(tokens_BN))
        keys = state.memory.keys_BHPK[:, 0]
        rows = keys.shape[1]
        for b, h, t in torch.cartesian_prod(
            torch.arange(4), torch.arange(2), torch.arange(q.shape[2])
        ).tolist():
            if rows:
                score = keys[b] @ F.normalize(q[b, h, t], dim=-1) * model.scale_H[h]
                best = score.topk(min(3, rows))
                for row, weight in zip(best.indices.tolist(), best.values.softmax(0), strict=True):
                    bin_ = (t + rows - row).bit_length() - 1
                    counts[h, bin_] += 1
                    attention[h, bin_] += weight
    bins = len(found["from"])
    assert found["layer"] == 0 and found["from"] == [1, 2, 4, 8, 16][:bins] and not counts[:, bins:].any()
    assert found["keys"] == counts[:, :bins].tolist() and counts.sum() > 0
    torch.testing.assert_close(torch.tensor(found["attention"], dtype=torch.double), attention[:, :bins])


def test_similarity_of_memories() -> None:
    model = build("rmt_xl")
    found = inside.look(model, TASK, 4)["similarity"]
    memories = [state.memory_BMD for state in states(model)]
    for s in range(4):
        for t in range(4):
            cosine_BM = F.cosine_similarity(memories[s], memories[t], dim=-1)
            assert found["between"][s][t] == pytest.approx(cosine_BM.mean().item())
            if t == s + 1:
                assert [slot[s] for slot in found["by_slot"]] == pytest.approx(cosine_BM.mean(0).tolist())


def test_parts_of_the_samples_make_the_same_means(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("rmt")
    whole = inside.look(model, TASK, 5)
    monkeypatch.setattr(inside, "rows_at_once", lambda model, task: 2)
    parts = inside.look(model, TASK, 5)
    for get in (lambda e: e["memory_share"]["memory_tokens"]["values"], lambda e: e["similarity"]["between"]):
        torch.testing.assert_close(torch.tensor(get(parts)), torch.tensor(get(whole)))


def test_nothing_to_look_at() -> None:
    with pytest.raises(ConfigError, match="carries nothing"):
        inside.check(Transformer(context="segment", vocab_size=9, **SIZES), 3)
    with pytest.raises(ConfigError, match="128 at most"):
        inside.check(build("rmt"), 129)
