"""Looking inside: numbers against attention written out by hand, and models that compute what they always
do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

from memlab.errors import ConfigError
from memlab.evaluation import inside
from memlab.layers.positions import rotate
from memlab.layers.state import State
from memlab.layers.state import state as declared
from memlab.memories import attention
from memlab.memories.base import LayerMemory, Where
from memlab.models.base import Model
from memlab.reports.evaluation import inside_figures, tables
from memlab.tasks.copy import Copy
from tests import small

KNN: dict[str, Any] = {"mem_len": 2, "memory_size": 9, "top_k": 3, "scale_init": 5.0, "gate_init": 0.7}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "rmt": ("rmt", {}),
    "rmt_encoder": ("rmt_encoder", {}),
    "rmt_xl": ("rmt_xl", {"mem_len": 4, "read_mem_from_cache": True}),
    "transformer_xl": ("transformer_xl", {"mem_len": 4}),
    "transformer_xl_relative": ("transformer_xl", {"mem_len": 4, "positions": "transformer_xl"}),
    "full": ("full", {}),
    "infini": ("infini_delta", {"gate_init": 0.7}),
    "rmt_infini": ("rmt", {"layer_memory": "infini", "update": "linear", "gate_init": 0.7}),
    "memorizing": ("memorizing", {**KNN, "memory_layer": 1, "kv_heads": 1}),
    "rmt_memorizing": ("rmt", {"layer_memory": ["transformer_xl", "memorizing"], **KNN}),
}
KINDS = {
    "rmt": {"memory_tokens"},
    "rmt_encoder": {"memory_tokens"},
    "rmt_xl": {"memory_tokens", "remembered"},
    "infini": {"gated"},
    "rmt_infini": {"gated", "memory_tokens"},
    "memorizing": {"remembered", "gated"},
    "rmt_memorizing": {"memory_tokens", "remembered", "gated"},
}
GATED = {"memorizing": [1], "rmt_memorizing": [2]}  # layers; else both
SIMILARITY = {  # but for memory tokens
    "transformer_xl": {"layer1", "layer2"},
    "transformer_xl_relative": {"layer1", "layer2"},
    "rmt_xl": {"layer1", "layer2"},
    "infini": {"layer1", "layer2"},
    "rmt_infini": {"layer1", "layer2"},
    "memorizing": {"layer2"},  # the memory of layer 1 grows, and layer 2 is a cache alone
    "rmt_memorizing": {"layer1"},
}
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
    preset, values = MODELS[name]
    return small.build(preset, TASK.vocab_size, **values).eval()


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
    assert found["memory_share"].keys() == KINDS.get(name, {"remembered"})
    for kind, share in found["memory_share"].items():
        values = torch.tensor(share["values"])
        assert share["layers"] == (GATED.get(name, [1, 2]) if kind == "gated" else [1, 2])
        assert values.shape == (3, len(share["layers"]), 2)
        assert (values[1:] > 0).all() and (values <= 1).all()
        assert kind == "memory_tokens" or not values[0].any(), (
            "nothing has been read before the first segment"
        )
    tokens = {"memory_tokens"} if name.startswith("rmt") else set()
    assert found["similarity"].keys() == tokens | SIMILARITY.get(name, set())
    assert [r["layer"] for r in found["retrieval"]] == GATED.get(name, [])
    growing = [1, 2] if name == "full" else GATED.get(name, [])
    assert len(found["missing"]) == len(growing)
    for layer, sentence in zip(growing, found["missing"], strict=True):
        assert sentence.startswith(f"similarity of layer {layer}: its state grows with the document")


def softmax(q: Tensor, k: Tensor, mask: Tensor) -> Tensor:
    return ((q @ k.transpose(-1, -2)) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf).softmax(-1)


def where(state: Any, first: int, count: int, model: Model, **more: Any) -> Where:
    return Where(first, count, 4, model.device, first, rotary=model.backbone.rotary, **more)


@torch.no_grad()
def test_attention_to_read_memory() -> None:
    model = build("rmt")
    found = inside.look(model, TASK, 4)["memory_share"]["memory_tokens"]["values"]
    m, memory = 3, model.backbone.memories[0]
    for s, (tokens_BN, state) in enumerate(zip(segments(), states(model), strict=False)):
        n, vectors = tokens_BN.shape[1], state.tokens.memory_BMD
        rows = torch.cat([vectors, model.backbone.embed(tokens_BN), vectors], dim=1)
        q, k, _ = memory.project(rows, where(state, -m, n + 2 * m, model).turn(-m, n + 2 * m, rows.dtype))
        weight = softmax(q, k, model.tokens.mask(n, model.device))
        expected = weight[:, :, m : m + n, :m].sum(-1).mean((0, 2))
        torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), expected)


@torch.no_grad()
def test_attention_to_remembered_rows() -> None:
    model = build("transformer_xl")
    found = inside.look(model, TASK, 4)["memory_share"]["remembered"]["values"]
    memory, c = model.backbone.memories[0], 4
    for s, (tokens_BN, state) in enumerate(zip(segments(), states(model), strict=False)):
        n = tokens_BN.shape[1]
        rows = torch.cat([state.layers[0].hidden_BCD, model.backbone.embed(tokens_BN)], dim=1)
        q, k, _ = memory.project(rows, where(state, -c, c + n, model).turn(-c, c + n, rows.dtype))
        mask = torch.ones(n, c + n, dtype=torch.bool).tril(c)
        mask[:, : c - min(c, s * n)] = False
        expected = softmax(q[:, :, c:], k, mask)[..., :c].sum(-1).mean((0, 2))
        torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), expected)


@pytest.mark.parametrize("name", ["infini", "rmt_infini"])
@torch.no_grad()
def test_share_of_a_gated_memory(name: str) -> None:
    """Of the tokens; memory tokens, which do not look at the layer's memory, do not count."""
    model = build(name)
    memory, s = model.backbone.memories[0], 2
    memory.gate_H[1] = -1.0
    found = inside.look(model, TASK, 4)["memory_share"]["gated"]["values"]
    tokens_BN, state = segments()[s], states(model)[s]
    before, n = state.layers[0].memory_BGKV, tokens_BN.shape[1]
    m = model.tokens.reads
    parts = [model.backbone.embed(tokens_BN)]
    if m:
        parts = [state.tokens.memory_BMD, *parts, state.tokens.memory_BMD]
    rows = torch.cat(parts, dim=1)
    mask = model.tokens.mask(n, model.device) if m else torch.ones(n, n, dtype=torch.bool).tril()
    q, k, v = memory.project(rows)
    turn = where(state, -m, n + 2 * m, model).turn(-m, n + 2 * m, q.dtype)
    local = (softmax(rotate(q, turn), rotate(k, turn), mask) @ v)[:, :, m : m + n]
    feature = F.elu(q[:, :, m : m + n]) + 1
    remembered = (feature @ before[..., :-1]) / (feature @ before[..., -1:])
    gate = memory.gate_H.sigmoid().view(-1, 1)
    a, b = gate * remembered.norm(dim=-1), (1 - gate) * local.norm(dim=-1)
    torch.testing.assert_close(torch.tensor(found[s][0], dtype=torch.double), (a / (a + b)).mean((0, 2)))


@torch.no_grad()
def test_how_far_back_keys_are_retrieved() -> None:
    model = build("memorizing")
    (found,) = inside.look(model, TASK, 4)["retrieval"]
    memory = model.backbone.memories[0]
    counts, attention = torch.zeros(2, 8), torch.zeros(2, 8, dtype=torch.double)
    for tokens_BN, state in zip(segments(), states(model), strict=False):
        q, _, _ = memory.project(model.backbone.embed(tokens_BN))
        keys = state.layers[0].memory.keys_BGLK[:, 0]
        rows = keys.shape[1]
        for b, h, t in torch.cartesian_prod(
            torch.arange(4), torch.arange(2), torch.arange(q.shape[2])
        ).tolist():
            if rows:
                score = keys[b] @ F.normalize(q[b, h, t], dim=-1) * memory.scale_H[h]
                best = score.topk(min(3, rows))
                for row, weight in zip(best.indices.tolist(), best.values.softmax(0), strict=True):
                    bin_ = (t + rows - row).bit_length() - 1
                    counts[h, bin_] += 1
                    attention[h, bin_] += weight
    bins = len(found["from"])
    assert found["layer"] == 1 and found["from"] == [1, 2, 4, 8, 16][:bins] and not counts[:, bins:].any()
    assert found["keys"] == counts[:, :bins].tolist() and counts.sum() > 0
    torch.testing.assert_close(torch.tensor(found["attention"], dtype=torch.double), attention[:, :bins])


def test_memory_tokens_retrieve_nothing() -> None:
    """Every token of the segments after the first looks at k keys, where there are so many,
    and no other row does.
    """
    (found,) = inside.look(build("rmt_memorizing"), TASK, 4)["retrieval"]
    lengths, rows, keys = TASK.segment_lengths, 0, 0
    for n in lengths:
        keys += 4 * n * min(3, rows)
        rows = min(rows + n, 9)
    assert [sum(head) for head in found["keys"]] == [keys, keys]


def test_similarity_of_memories() -> None:
    model = build("rmt_xl")
    found = inside.look(model, TASK, 4)["similarity"]
    memories = [state.tokens.memory_BMD for state in states(model)]
    for s in range(4):
        for t in range(4):
            cosine_BM = F.cosine_similarity(memories[s], memories[t], dim=-1)
            assert found["memory_tokens"]["between"][s][t] == pytest.approx(cosine_BM.mean().item())
            if t == s + 1:
                by_slot = [slot[s] for slot in found["memory_tokens"]["by_slot"]]
                assert by_slot == pytest.approx(cosine_BM.mean(0).tolist())
    of_layer = found["layer2"]
    assert of_layer["by_slot"] is None
    windows = [state.layers[1].hidden_BCD.flatten(1) for state in states(model)]
    for s in range(4):
        for t in range(4):
            cosine = F.cosine_similarity(windows[s], windows[t], dim=-1).mean().item()
            assert of_layer["between"][s][t] == pytest.approx(cosine, abs=1e-12)
    assert of_layer["between"][0][0] == 0, "before the first segment the window is zeros"


@declared
class MeanState(State):
    """A vector, and how many segments made it."""

    mean_BD: Tensor
    segments_B: Tensor


class Mean(attention.Attention):
    """A user's own memory: the mean of what the layer has read, added through the contract's gate."""

    carries = True  # type: ignore[assignment]

    def init_state(self, batch_size: int) -> MeanState:
        counts_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MeanState(self.zeros(batch_size, self.description.width), counts_B)

    def segment(self, x_BTD: Tensor, state: MeanState, where: Where) -> tuple[Tensor, MeanState]:
        q, k, v = self.project(x_BTD)
        local = self.attend(q, k, v, where)
        remembered = self.keys_values(state.mean_BD[:, None])[1].expand_as(local)
        y = self.merge(self.mix(local, remembered, torch.full((1, 1), 0.25, dtype=local.dtype), where))
        mean_BD = state.mean_BD.lerp(x_BTD.mean(1).detach(), 0.5)
        return y, MeanState(mean_BD, state.segments_B + 1)


class Silent(Mean):
    """A memory that neither attends nor mixes with the base class's methods,
    and whose state changes its size.
    """

    def segment(self, x_BTD: Tensor, state: MeanState, where: Where) -> tuple[Tensor, MeanState]:
        return x_BTD, MeanState(torch.cat([state.mean_BD, x_BTD.mean(1)], dim=1), state.segments_B)


def own(name: str) -> Model:
    preset = small.build("transformer", TASK.vocab_size, layer_memory=f"{__name__}.{name}")
    return preset.eval()


def test_a_memory_of_one_s_own_shows_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = own("Mean")
    assert isinstance(model.backbone.memories[0], LayerMemory)
    entry = inside.look(model, TASK, 4)
    assert entry["memory_share"].keys() == {"gated"} and entry["similarity"].keys() == {"layer1", "layer2"}
    assert not entry["missing"]
    values = torch.tensor(entry["memory_share"]["gated"]["values"])
    assert values.shape == (3, 2, 2) and (values[1:] > 0).all()
    means = [state.layers[1].mean_BD for state in states(model)]
    cosine = F.cosine_similarity(means[1], means[3], dim=-1).mean().item()
    assert entry["similarity"]["layer2"]["between"][1][3] == pytest.approx(cosine)
    entry |= {"segments": 3, "samples": 4}
    drawn = inside_figures.draw(entry, "title", tmp_path)
    assert [file.name for file in drawn] == [
        "inside_gated_3_segments.png",
        "inside_similarity_of_layers_3_segments.png",
    ]
    tables.print_inside(Console(), {"model": "own", "task": "copy", "seed": 0}, [entry])
    said = capsys.readouterr().out
    assert "gated, layer 1" in said and "state of layer 2" in said and "not shown" not in said


def test_what_cannot_be_shown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    entry = inside.look(own("Silent"), TASK, 4)
    assert not entry["memory_share"] and not entry["similarity"]
    entry |= {"segments": 3, "samples": 4}
    tables.print_inside(Console(width=300), {"model": "own", "task": "copy", "seed": 0}, [entry])
    said = capsys.readouterr().out
    for layer in (1, 2):
        assert f"not shown: memory share of layer {layer}: Silent attends to no remembered rows" in said
        assert f"not shown: similarity of layer {layer}: its state grows" in said


def test_parts_of_the_samples_make_the_same_means(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("rmt")
    whole = inside.look(model, TASK, 5)
    monkeypatch.setattr(inside, "rows_at_once", lambda model, task: 2)
    parts = inside.look(model, TASK, 5)
    for get in (
        lambda e: e["memory_share"]["memory_tokens"]["values"],
        lambda e: e["similarity"]["memory_tokens"]["between"],
    ):
        torch.testing.assert_close(torch.tensor(get(parts)), torch.tensor(get(whole)))


def test_nothing_to_look_at() -> None:
    with pytest.raises(ConfigError, match="carries nothing"):
        inside.check(small.build("segment", 9), 3)
    with pytest.raises(ConfigError, match=r"model\.memory=shuffled reads each one twice"):
        inside.check(small.build("rmt", 9, memory="shuffled"), 3)
    with pytest.raises(ConfigError, match="128 at most"):
        inside.check(build("rmt"), 129)
