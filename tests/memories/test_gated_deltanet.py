"""Gated DeltaNet against equation 10 and figure 1 of its paper (arXiv 2412.06464), and linear attention
against equations 4 to 9 of its own (arXiv 2006.16236), written as loops over tokens.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers import observing
from memlab.memories.gated_deltanet import DeltaState
from memlab.models.base import Output
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from tests import building
from tests.building import VOCABULARY, read_in_pieces, tokens
from tests.models import naive, naive_memory

Layer = tuple[list[Tensor], list[Tensor]]  # of one document: S of each key-value head, projections so far
RULES = pytest.mark.parametrize("rule", ["gated_delta", "delta", "gated", "linear"])


def build(**options: Any) -> Decoder:
    return building.decoder("gated_deltanet", **options)


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def silu(x: Tensor) -> Tensor:
    return x * sigmoid(x)


def step(rule: str, S: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Equation 10, with S from key to value."""
    if rule == "linear":
        return S + torch.outer(k, torch.cat([v, torch.ones(1, dtype=v.dtype)]))
    if rule in ("gated_delta", "gated"):
        S = a * S
    if rule in ("gated_delta", "delta"):
        S = (torch.eye(len(k), dtype=k.dtype) - b * torch.outer(k, k)) @ S
    return S + b * torch.outer(k, v)


def read_row(model: Decoder, layer: int, x_D: Tensor, state: Layer) -> tuple[list[Tensor], Tensor]:
    """What each head reads for one token, after writing the token, and the token's projections."""
    memory, weights = model.backbone.memories[layer], dict(model.named_parameters())
    name, rule = f"backbone.blocks.{layer}.memory", memory.rule
    heads, groups, width = model.backbone.heads, model.backbone.kv_heads, model.backbone.head_width
    S, earlier = state
    now = weights[f"{name}.attention.qkv.weight"] @ x_D
    earlier.append(now)
    mixed = now
    if f"{name}.convolution_Pc" in weights:
        kernel_Pc = weights[f"{name}.convolution_Pc"]
        size = kernel_Pc.shape[1]
        mixed = sum(
            (kernel_Pc[:, size - 1 - back] * earlier[-1 - back] for back in range(min(size, len(earlier)))),
            torch.zeros_like(now),
        )
    if rule != "linear":
        mixed = silu(mixed)
    parts = list(mixed.view(heads + 2 * groups, width))
    for g in range(groups):
        k, v = parts[heads + g], parts[heads + groups + g]
        k = naive_feature(k) if rule == "linear" else k / (k @ k).sqrt()
        a = b = torch.ones((), dtype=k.dtype)
        if rule in ("gated_delta", "gated"):
            rate = torch.log(1 + torch.exp(weights[f"{name}.decay.weight"][g] @ x_D + memory.decay_bias_G[g]))
            a = torch.exp(-torch.exp(memory.log_A_G[g]) * rate)
        if rule != "linear":
            b = sigmoid(weights[f"{name}.beta.weight"][g] @ x_D)
        S[g] = step(rule, S[g], k, v, a, b)
    outputs = []
    for h in range(heads):
        q = parts[h]
        if rule == "linear":
            o = naive_feature(q) @ S[h * groups // heads]
            o = o[:-1] / o[-1]
        else:
            o = (q / (q @ q).sqrt()) @ S[h * groups // heads]
            o = o / ((o @ o) / width + 1e-5).sqrt() * weights[f"{name}.out_norm.weight"]
        if f"{name}.output_gate.weight" in weights:
            gate = weights[f"{name}.output_gate.weight"] @ x_D
            o = o * silu(gate.view(heads, width)[h])
        outputs.append(o)
    return outputs, now


def naive_feature(x: Tensor) -> Tensor:
    """ELU + 1."""
    return torch.where(x > 0, x + 1, torch.exp(x))


def read_segment(model: Decoder, tokens_N: Tensor, state: list[Layer]) -> Tensor:
    """One segment of one document, which changes `state`: logits [N, V]."""
    weights = dict(model.named_parameters())

    def normed(name: str, x_D: Tensor) -> Tensor:
        return naive.layer_norm(x_D, weights[f"{name}.weight"], weights[f"{name}.bias"])

    heads, groups = model.backbone.heads, model.backbone.kv_heads
    rows = [weights["backbone.embed.weight"][t] for t in tokens_N]
    for layer in range(len(model.backbone.blocks)):
        block = f"backbone.blocks.{layer}"
        local: list[list[Tensor]] = []  # keys and values of the segment's rows, by part
        for i, x in enumerate(rows):
            outputs, projected = read_row(model, layer, normed(f"{block}.memory.norm", x), state[layer])
            if f"{block}.memory.gate_H" in weights:
                biased = projected + weights.get(f"{block}.memory.attention.qkv.bias", torch.zeros(()))
                local.append(list(biased.view(heads + 2 * groups, -1)))
                for h in range(heads):
                    k = heads + h * groups // heads
                    query = naive_memory.placed(model, local[i][h], i)
                    scores = [
                        naive_memory.local_score(
                            model, layer, h, query, naive_memory.placed(model, parts[k], j), i - j
                        )
                        for j, parts in enumerate(local)
                    ]
                    near = naive_memory.weighted(scores, [parts[k + groups] for parts in local])
                    share = naive_memory.gate(weights[f"{block}.memory.gate_H"][h])
                    outputs[h] = share * outputs[h] + (1 - share) * near
            x = x + weights[f"{block}.memory.attention.out.weight"] @ torch.cat(outputs)
            hidden = naive.gelu(
                weights[f"{block}.ffn.up.weight"] @ normed(f"{block}.ffn_norm", x)
                + weights[f"{block}.ffn.up.bias"]
            )
            rows[i] = x + weights[f"{block}.ffn.down.weight"] @ hidden + weights[f"{block}.ffn.down.bias"]
    return torch.stack([naive.head(model, normed("backbone.norm", x)) for x in rows])


def nothing(model: Decoder) -> list[Layer]:
    values = model.backbone.head_width + (model.backbone.memories[0].rule == "linear")
    empty = torch.zeros(model.backbone.head_width, values, dtype=torch.float64)
    return [([empty] * model.backbone.kv_heads, []) for _ in model.backbone.blocks]


def read_all(model: Decoder, tokens_BSN: Tensor) -> list[Tensor]:
    """Logits [B, S, N, V], and S of each layer after the last segment."""
    logits, after = [], []
    for tokens_SN in tokens_BSN:
        state = nothing(model)
        logits.append(torch.stack([read_segment(model, tokens_N, state) for tokens_N in tokens_SN]))
        after.append([torch.stack(S) for S, _ in state])
    return [torch.stack(logits), *(torch.stack(layer) for layer in zip(*after, strict=True))]


def everything(output: Output) -> list[Tensor]:
    return [output.logits, *(layer.memory_BGKV for layer in output.state.layers)]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 3), {}),
        ((1, 2, 5), {"heads": 4, "kv_heads": 2, "width": 16, "layers": 1, "short_convolution": 3}),
        ((2, 4, 1), {"kv_heads": 1, "short_convolution": 0}),
        ((2, 2, 3), {"output_gate": False, "short_convolution": 6}),
        ((2, 2, 3), {"local_attention": True, "gate_init": 0.3}),
        ((1, 2, 3), {"local_attention": True, "positions": "transformer_xl", "kv_heads": 1}),
    ],
    ids=str,
)
@RULES
def test_logits_matrices_and_gradients_equal_the_papers_formulas(
    rule: str, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    """Over all segments, in both forms and in pieces, with gradient into every weight."""
    model, tokens_BSN = build(rule=rule, **options), tokens(*shape)
    for read in (model.recurrent, model.parallel):
        expected = read_all(model, tokens_BSN)
        output = read(tokens_BSN, model.init_state(shape[0]))
        naive.assert_same_values_and_gradients(model, everything(output), expected)
    logits, state = read_in_pieces(model, tokens_BSN, [1] * shape[2])
    for actual, exact in zip(everything(Output(logits, state)), expected, strict=True):
        torch.testing.assert_close(actual, exact.reshape(actual.shape), rtol=1e-10, atol=1e-10)


@RULES
def test_bytes_of_the_state(rule: str) -> None:
    """Closed form, for each layer: G K (K + 1 with a denominator) in fp32, and what the convolution needs."""
    options = {"width": 24, "heads": 6, "kv_heads": 2, "layers": 3, "rule": rule}
    for size in (0, 1, 4):
        model = build(**options, short_convolution=size).float()
        state = model(tokens(5, 2, 3)).state
        matrix = 2 * 4 * (4 + (rule == "linear"))
        assert state.nbytes == 5 * 3 * 4 * (matrix + max(0, size - 1) * (6 + 2 * 2) * 4)


@RULES
def test_the_matrices_are_fp32_under_bf16(rule: str) -> None:
    model = build(rule=rule, layers=1).float()
    x = tokens(2, 3, 40)
    with torch.no_grad():
        exact = model(x)
        for form in (model.recurrent, model.parallel):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = form(x, model.init_state(2))
            assert rough.state.layers[0].memory_BGKV.dtype == torch.float32
            assert (rough.logits - exact.logits).abs().max() < 0.1 * exact.logits.abs().max()
        narrow = model.to(torch.bfloat16)
        state = narrow(x).state.layers[0]
    assert state.memory_BGKV.dtype == torch.float32 and state.recent_BcP.dtype == torch.bfloat16


def test_a_matrix_keeps_one_value_for_each_key() -> None:
    """What the delta rule is for: with b = 1, writing a key again replaces its value."""
    from memlab.ops.delta_rule import gated_delta_rule

    keys = torch.eye(3, dtype=torch.float64)[None, None, [0, 1, 0]]
    values = torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64).view(1, 1, 3, 1)
    ones = torch.ones(1, 1, 3, dtype=torch.float64)
    start = torch.zeros(1, 1, 3, 1, dtype=torch.float64)
    for delta, expected in ((True, [5.0, 2.0, 0.0]), (False, [6.0, 2.0, 0.0])):
        _, state = gated_delta_rule(keys, keys, values, 0 * ones, ones, start, delta)
        assert state.flatten().tolist() == expected


def test_the_convolution_looks_across_the_segment_boundary() -> None:
    """A token's first neighbours may be those of the segment before; a state without them reads otherwise."""
    model = build(layers=1)
    x = tokens(1, 2, 3)
    state = model.segment(x[:, 0], model.init_state(1)).state
    (layer,) = state.layers
    cut = DeltaState(layer.memory_BGKV, torch.zeros_like(layer.recent_BcP))
    with_them = model.segment(x[:, 1], state).logits
    without = model.segment(x[:, 1], type(state)(state.tokens, (cut,), state.nothing_B0)).logits
    assert (with_them - without).abs().max() > 1e-3


def test_a_model_that_reads_in_both_directions_needs_local_attention() -> None:
    values = {"layer_memory": "gated_deltanet", "tokens": "rmt_encoder", "layers": 1, "width": 8, "heads": 2}
    with pytest.raises(ConfigError, match="tokens=rmt_encoder needs layers that read in both"):
        compose(values, VOCABULARY)
    assert compose({**values, "local_attention": True}, VOCABULARY).answers_once


def test_positions_that_no_layer_looks_at_are_refused() -> None:
    with pytest.raises(ConfigError, match="looks at positions"):
        build(positions="transformer_xl")
    build(positions="transformer_xl", local_attention=True)


@pytest.mark.parametrize("kind", ["none", "rmt"])
@RULES
def test_what_earlier_segments_wrote_is_seen_from_outside(rule: str, kind: str) -> None:
    """`evaluate inside=`: their share in what is read, for the rows whose output is needed."""
    model = building.decoder("gated_deltanet", kind, rule=rule, memory_tokens=2)
    x, shares = tokens(2, 3, 4), []

    def see(event: str, values: dict[str, Any]) -> None:
        older, own = (values[name].norm(dim=-1) for name in ("remembered", "local"))
        shares.append((event, values["where"].wanted, (older / (older + own)).mean(0)))

    plain = model.recurrent(x, model.init_state(2)).logits
    with observing.by(see):
        torch.testing.assert_close(model.recurrent(x, model.init_state(2)).logits, plain)
    scanned = [share for event, _, share in shares if event == "mix"]
    assert len(scanned) == 3 * 2  # in each segment and layer
    for number, share in enumerate(scanned):
        assert share.shape[1] == 4 + (kind == "rmt") * (2 + 2 * (number % 2 == 0))
        assert (share == 0).all() if number < 2 else (share > 0).all() and (share < 1).all()
