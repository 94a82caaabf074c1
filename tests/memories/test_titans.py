"""Titans against equations 11 to 28 of its paper (arXiv 2501.00663), token by token, with gradients of the
memory's loss from autograd.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.memories.neural import NeuralState
from memlab.models.base import Model, ModelState
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive, naive_memory

OPTIONS: dict[str, Any] = {
    "depth": 2,
    "expansion": 2,
    "chunk": 3,  # segments have 5 tokens: the last chunk of each is shorter
    "memory_lr": 0.9,
    "momentum": 0.5,
    "forgetting": 0.1,
    "persistent_rows": 2,
}
CASES: dict[str, dict[str, Any]] = {
    "two layers": {},
    "linear, equal chunks": {"depth": 1, "chunk": 1, "layers": 1},
    "linear, a chunk for a segment": {"depth": 1, "chunk": None, "momentum": 0.0, "layers": 1},
    "three layers, no momentum, nothing forgotten": {
        "depth": 3,
        "momentum": 0.0,
        "forgetting": 0.0,
        "layers": 1,
    },
    "shared head, no positions, no persistent rows": {
        "kv_heads": 1,
        "positions": "none",
        "chunk": 9,
        "layers": 1,
    },
}
KINDS = pytest.mark.parametrize("kind", ["titans_mag", "titans_mac"])
EACH = pytest.mark.parametrize("changed", CASES.values(), ids=CASES.keys())
Memory = list[tuple[list[Tensor], list[Tensor]]]  # for each head: M and S, a matrix for each layer of the MLP


def build(kind: str, **changed: Any) -> Decoder:
    return building.decoder(kind, **(OPTIONS | changed))


def forms(kind: str) -> list[str]:
    return ["recurrent", "parallel"] if kind == "titans_mag" else ["recurrent"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def mlp(matrices: list[Tensor], x_K: Tensor) -> Tensor:
    for i, matrix in enumerate(matrices):
        x_K = (silu(x_K) if i else x_K) @ matrix
    return x_K


def rms_norm(x_D: Tensor, gain_D: Tensor) -> Tensor:
    return x_D / (x_D.square().sum() / len(x_D) + 1e-5) ** 0.5 * gain_D


class Reference:
    """One layer's memory of one document."""

    def __init__(self, model: Model, layer: int, memory: Memory, options: dict[str, Any]) -> None:
        self.model, self.layer, self.options = model, layer, options
        name = f"backbone.blocks.{layer}.memory."
        all_weights = dict(model.named_parameters())
        self.w = {key.removeprefix(name): value for key, value in all_weights.items() if key.startswith(name)}
        self.heads, self.width = model.backbone.heads, model.backbone.head_width
        self.memory = memory

    def vectors(self, row_D: Tensor, part: int) -> list[Tensor]:
        """Queries (0), keys (1) or values (2) of a row, by head."""
        return list(silu(self.w["memory_qkv.weight"].chunk(3)[part] @ row_D).view(self.heads, self.width))

    def retrieve(self, row_D: Tensor, memory: Memory) -> Tensor:
        """Eq. 15, the heads joined."""
        found = [mlp(M, q / q.norm()) for q, (M, _) in zip(self.vectors(row_D, 0), memory, strict=True)]
        return self.w["memory_out.weight"] @ torch.cat(found)

    def write(self, row_D: Tensor, at_chunk: Memory, size: int) -> None:
        """Eq. 13 and 14 for one token, with the gradient at the memory before its chunk of this size."""
        keys, values = self.vectors(row_D, 1), self.vectors(row_D, 2)
        rates = (self.w["rates.weight"] @ row_D).view(3, self.heads) + self.w["rates_bias_3H"]
        keep, eta, theta = 1 / (1 + torch.exp(-rates))
        after: Memory = []
        for h, (M, S) in enumerate(self.memory):
            # copies: rows may depend on M too, which is no part of this gradient
            start = [m.clone() for m in at_chunk[h][0]]
            target = values[h] / values[h].norm()
            loss = (mlp(start, keys[h] / keys[h].norm()) - target).square().sum()
            gradients = torch.autograd.grad(loss, start, create_graph=True)
            kept = keep[h] if self.options["forgetting"] else 1.0
            goes_on = eta[h] if self.options["momentum"] else 0.0
            step = self.options["memory_lr"] * theta[h] / size
            S = [goes_on * s - step * gradient for s, gradient in zip(S, gradients, strict=True)]
            after.append(([kept * m + s for m, s in zip(M, S, strict=True)], S))
        self.memory = after

    def walk(self, rows: list[Tensor]) -> list[Tensor]:
        """What each row of a segment retrieves, while all of them are written."""
        size, found = self.options["chunk"] or len(rows), []
        for i, row in enumerate(rows):
            if i % size == 0:
                at_chunk = self.memory
            found.append(self.retrieve(row, at_chunk))
            self.write(row, at_chunk, min(size, len(rows) - i // size * size))
        return found

    def gated(self, y_D: Tensor, remembered_D: Tensor) -> Tensor:
        return y_D / (1 + torch.exp(-rms_norm(remembered_D, self.w["memory_norm.weight"])))

    def attend(self, rows: list[Tensor], context: list[Tensor]) -> list[Tensor]:
        """Attention over [persistent ; context ; rows], normalised. Row i sees context up to i."""
        model, layer = self.model, self.layer
        persistent = list(self.w["persistent_PD"])
        name = f"backbone.blocks.{layer}.memory.norm"
        queries, keys, values = naive_memory.project(model, layer, rows)
        beside = [naive_memory.normed(model, name, x) for x in [*persistent, *context]]
        _, more_keys, more_values = naive_memory.project(model, layer, beside)
        p, heads = len(persistent), []
        for h, of_head in enumerate(queries):
            g, outputs = h * len(keys) // len(queries), []
            for i, query in enumerate(of_head):
                seen = [(more_keys[g][j], more_values[g][j], j - p) for j in range(p)]
                seen += [(more_keys[g][p + j], more_values[g][p + j], j) for j in range(i + 1) if context]
                seen += [(keys[g][j], values[g][j], j) for j in range(i + 1)]
                asks = naive_memory.placed(model, query, i)
                scores = [
                    asks @ naive_memory.placed(model, key, at) / math.sqrt(self.width) for key, _, at in seen
                ]
                outputs.append(naive_memory.weighted(scores, [value for _, value, _ in seen]))
            heads.append(outputs)
        y = naive_memory.joined(model, layer, heads)
        return [rms_norm(row, self.w["local_norm.weight"]) for row in y]

    def mag(self, rows: list[Tensor]) -> list[Tensor]:
        """Eq. 26 to 28."""
        y = self.attend(rows, [])
        return [self.gated(one, m) for one, m in zip(y, self.walk(rows), strict=True)]

    def mac(self, rows: list[Tensor]) -> list[Tensor]:
        """Eq. 21 to 25."""
        y = self.attend(rows, [self.retrieve(row, self.memory) for row in rows])
        return [self.gated(one, m) for one, m in zip(y, self.walk(y), strict=True)]


def initial(model: Model, states: list[NeuralState] | None = None) -> list[list[Memory]]:
    """By document and layer: the learned memory, or that of states."""
    batch = len(states[0].weights_BHF) if states else 1
    found = []
    for b in range(batch):
        layers = []
        for layer, memory in enumerate(model.backbone.memories):
            weights_HF = memory.initial_HF + (states[layer].weights_BHF[b] if states else 0)
            surprise_HF = torch.zeros_like(weights_HF)
            if states and states[layer].surprise_BHF.shape[-1]:
                surprise_HF = states[layer].surprise_BHF[b]
            layers.append(
                [(cut(memory, M), cut(memory, S)) for M, S in zip(weights_HF, surprise_HF, strict=True)]
            )
        found.append(layers)
    return found


def cut(memory: Any, flat_F: Tensor) -> list[Tensor]:
    sizes = [i * o for i, o in memory.shapes]
    return [part.view(i, o) for part, (i, o) in zip(flat_F.split(sizes), memory.shapes, strict=True)]


def read_all(
    model: Model, kind: str, tokens_BSN: Tensor, memories: list[list[Memory]], changed: dict[str, Any]
) -> list[Tensor]:
    """Logits [B, S, N, V], and what `everything` has of the state."""
    options, logits, last = OPTIONS | changed, [], []
    for tokens_SN, own in zip(tokens_BSN, memories, strict=True):
        references = [Reference(model, layer, memory, options) for layer, memory in enumerate(own)]

        def sublayer(layer: int, rows: list[Tensor], own: Any = references) -> list[Tensor]:
            found: list[Tensor] = getattr(own[layer], kind.removeprefix("titans_"))(rows)
            return found

        for tokens_N in tokens_SN:
            logits.append(naive_memory.read_segment(model, tokens_N, sublayer=sublayer))
        last.append([reference.memory for reference in references])
    found = [torch.stack(logits).unflatten(0, tokens_BSN.shape[:2])]
    for layer, memory in zip(zip(*last, strict=True), model.backbone.memories, strict=True):
        for part in (0, 1) if options["momentum"] else (0,):
            flat = [[torch.cat([m.flatten() for m in head[part]]) for head in of] for of in layer]
            flat_BHF = torch.stack([torch.stack(of) for of in flat])
            found.append(flat_BHF if part else flat_BHF - memory.initial_HF)  # what is carried
    return found


def everything(logits: Tensor, state: ModelState) -> list[Tensor]:
    parts = [part for layer in state.layers for part in (layer.weights_BHF, layer.surprise_BHF)]
    return [logits, *(part for part in parts if part.shape[-1])]


@KINDS
@EACH
def test_logits_weights_and_gradients_equal_the_paper_formulas(changed: dict[str, Any], kind: str) -> None:
    """Two segments, whole and in pieces, with gradient through what was learned while reading."""
    model, tokens_BSN = build(kind, **changed), tokens(1, 2, 5)
    expected = read_all(model, kind, tokens_BSN, initial(model), changed)
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, [1, 3, 1])
    actual = everything(logits_BTV.unflatten(1, (2, 5)), state)
    for form in forms(kind):
        output = getattr(model, form)(tokens_BSN, model.init_state(1))
        actual += everything(output.logits, output.state)
    expected *= 1 + len(forms(kind))
    naive.assert_same_values_and_gradients(model, actual, expected)


@KINDS
@pytest.mark.parametrize("depth", [1, 2])
def test_a_carried_memory_enters_as_the_paper_says_and_receives_gradient(kind: str, depth: int) -> None:
    model, tokens_BSN = build(kind, depth=depth, layers=1, chunk=2), tokens(2, 1, 4)
    memory = model.backbone.memories[0]
    leaves = [0.3 * t for t in naive.random_like(*[memory.initial_HF.expand(2, -1, -1)] * 2)]
    state = NeuralState(*(leaf.requires_grad_() for leaf in leaves))
    expected = read_all(model, kind, tokens_BSN, initial(model, [state]), {"chunk": 2})
    actual = []
    for form in forms(kind):
        carried = dataclasses.replace(model.init_state(2), layers=(state,))
        output = getattr(model, form)(tokens_BSN, carried)
        actual += everything(output.logits, output.state)
    expected *= len(forms(kind))
    naive.assert_same_values_and_gradients(model, actual, expected, inputs=leaves)


@KINDS
def test_what_is_read_often_is_retrieved(kind: str) -> None:
    """A linear memory that reads one key and value again and again maps the key to the value."""
    model = build(kind, depth=1, forgetting=0.0, momentum=0.0, memory_lr=0.5, layers=1)
    memory = model.backbone.memories[0]
    row_B1D = naive.random_like(torch.empty(1, 1, 8))[0]
    written, state = memory.writes(row_B1D), memory.init_state(1)
    for _ in range(200):
        state = memory.update(state, written)
    found = written.keys_BHTK @ state.weights_BHF.unflatten(-1, (4, 4))
    torch.testing.assert_close(found, written.values_BHTK, rtol=1e-6, atol=1e-6)


@KINDS
def test_state_bytes(kind: str) -> None:
    """For each head, the MLP's weights, and the same again for their momentum; in fp32 under every type."""
    for momentum, copies in ((0.5, 2), (0.0, 1)):
        for dtype, size in ((torch.float64, 8), (torch.bfloat16, 4)):
            model = build(kind, momentum=momentum).to(dtype)
            weights = 2 * (4 * 8 + 8 * 4)  # heads, K = 4, a hidden layer of 2 K
            with torch.no_grad():
                assert model(tokens(3, 2, 5)).state.nbytes == 3 * 2 * weights * copies * size


def test_rates_begin_as_asked() -> None:
    torch.manual_seed(0)
    memory = building.build("titans_mag", forgetting=0.02, momentum=0.7, memory_lr=0.4).backbone.memories[0]
    with torch.no_grad():
        memory.rates_bias_3H -= 0.3 * torch.randn_like(memory.rates_bias_3H)  # noise on noise: any numbers
    found = memory.diagnose()
    keep, momentum, step = torch.sigmoid(memory.rates_bias_3H)
    torch.testing.assert_close(found["forgetting"], 1 - keep)
    torch.testing.assert_close(found["momentum"], momentum)
    torch.testing.assert_close(found["step"], 0.4 * step)
    assert (
        not {"forgetting", "momentum"}
        & build("titans_mag", forgetting=0.0, momentum=0.0).backbone.memories[0].diagnose().keys()
    )


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("titans_mag", {"momentum": 1.0}, "model.momentum=1"),
        ("titans_mac", {"forgetting": 1.0}, "model.forgetting=1"),
        ("titans_mac", {"positions": "transformer_xl"}, "model.positions=transformer_xl"),
    ],
)
def test_mistakes(kind: str, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(kind, **changed)
