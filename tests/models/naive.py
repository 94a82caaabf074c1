"""A decoder Transformer straight from the papers' formulas, in loops over batch rows, heads, queries and
keys.

It takes nothing from memlab but the weights, which it finds by their names, so that gradients of a loss
computed here and of one computed by a model arrive at the same parameters. A row of the input is one vector
[D]; who sees whom is asked for each pair of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
Sees = Callable[[int, int], bool]  # (row of the query, row of the key)


def layer_norm(x_D: Tensor, gain_D: Tensor, bias_D: Tensor) -> Tensor:
    """Layer Normalization (arXiv 1607.06450), with the biased variance and torch's epsilon."""
    centred = x_D - x_D.sum() / len(x_D)
    variance = (centred * centred).sum() / len(x_D)
    return centred / (variance + 1e-5) ** 0.5 * gain_D + bias_D


def gelu(x: Tensor) -> Tensor:
    """x * P(Z <= x) for a standard normal Z (arXiv 1606.08415), exactly."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def turn(x_K: Tensor, position: int) -> Tensor:
    """RoFormer (arXiv 2104.09864): pair (k, k + K/2) turns by position * 10000^(-2k/K)."""
    half = len(x_K) // 2
    angles = [position * 10_000 ** (-2 * k / len(x_K)) for k in range(half)]
    cos, sin = (torch.tensor([f(a) for a in angles], dtype=x_K.dtype) for f in (math.cos, math.sin))
    first, second = x_K[:half], x_K[half:]
    return torch.cat([first * cos - second * sin, first * sin + second * cos])


def sinusoid(distance: int, width: int) -> Tensor:
    """R [D] of one distance (Transformer-XL, arXiv 1901.02860, section 3.3): sines, then cosines,
    at 10000^(-2k/D) for k < D/2.
    """
    angles = [distance * 10_000 ** (-2 * k / width) for k in range(width // 2)]
    return torch.tensor([f(a) for f in (math.sin, math.cos) for a in angles], dtype=torch.float64)


def attention(
    weights: Weights,
    name: str,
    heads: int,
    x_RD: list[Tensor],
    positions: Sequence[int],
    sees: Sees,
    first: int = 0,
    biases_2HK: Tensor | None = None,
    clamp_len: int | None = None,
) -> tuple[list, list, list]:
    """ "Attention Is All You Need" (arXiv 1706.03762), 3.2.1 and 3.2.2: outputs by row, keys and values by
    [head][row].

    Rows before `first` are looked at and ask nothing. There may be fewer key and value heads than query heads
    (arXiv 2305.13245): neighbouring query heads share one. Positions turn queries and keys, unless there is a
    matrix W_r for distances: then `biases_2HK` are the u and v of Transformer-XL's scores (arXiv 1901.02860,
    section 3.3), and no distance counts as longer than `clamp_len`.
    """
    width = len(x_RD[0])
    head_width = width // heads
    kv_heads = (len(weights[f"{name}.qkv.weight"]) // head_width - heads) // 2
    sizes = [count * head_width for count in (heads, kv_heads, kv_heads)]
    matrices = weights[f"{name}.qkv.weight"].split(sizes)
    biases = (
        weights[f"{name}.qkv.bias"].split(sizes)
        if f"{name}.qkv.bias" in weights
        else [torch.zeros(()).expand(n) for n in sizes]
    )
    relative = f"{name}.distance.weight" in weights

    def project(part: int, h: int) -> list[Tensor]:
        own = slice(h * head_width, (h + 1) * head_width)
        matrix_KD, bias_K = matrices[part][own], biases[part][own]
        return [matrix_KD @ x + bias_K for x in x_RD]

    def turned(vectors_RK: list[Tensor]) -> list[Tensor]:
        return vectors_RK if relative else [turn(x, p) for x, p in zip(vectors_RK, positions, strict=True)]

    def projected_distances(h: int) -> dict[int, Tensor]:
        """W_r R of every distance behind or ahead that there is, for one head."""
        matrix_KD = weights[f"{name}.distance.weight"][h * head_width : (h + 1) * head_width]
        span = max(positions) - min(positions)
        longest = span if clamp_len is None else clamp_len
        return {d: matrix_KD @ sinusoid(min(d, longest), width) for d in range(-span, span + 1)}

    all_keys, all_values = (
        [turned(project(1, g)) for g in range(kv_heads)],
        [project(2, g) for g in range(kv_heads)],
    )
    heads_RHK: list[list[Tensor]] = [[] for _ in x_RD[first:]]
    for h in range(heads):
        queries, keys, values = (
            turned(project(0, h)),
            *(kept[h * kv_heads // heads] for kept in (all_keys, all_values)),
        )
        if relative:
            assert biases_2HK is not None
            (u_K, v_K), r_K = biases_2HK[:, h], projected_distances(h)
        for i in range(first, len(x_RD)):
            seen = [j for j in range(len(keys)) if sees(i, j)]
            if relative:
                to_content, to_distance = queries[i] + u_K, queries[i] + v_K
                scores = [to_content @ keys[j] + to_distance @ r_K[positions[i] - positions[j]] for j in seen]
            else:
                scores = [queries[i] @ keys[j] for j in seen]
            weight = torch.exp(torch.stack(scores) / math.sqrt(head_width))
            weight = weight / weight.sum()
            heads_RHK[i - first].append(
                torch.stack([w * values[j] for w, j in zip(weight.unbind(), seen, strict=True)]).sum(0)
            )
    return [weights[f"{name}.out.weight"] @ torch.cat(row) for row in heads_RHK], all_keys, all_values


def block(
    model: nn.Module,
    layer: int,
    x_RD: Sequence[Tensor],
    positions: Sequence[int],
    sees: Sees,
    first: int = 0,
    clamp_len: int | None = None,
) -> tuple[list[Tensor], list, list]:
    """One pre-LN block for one batch row: outputs of the rows from `first` on,
    and `attention`'s keys and values of all rows.
    """
    weights: Weights = dict(model.named_parameters())
    name, biases_2HK = f"backbone.blocks.{layer}", None
    if "backbone.distance_biases" in weights:  # of each layer, or one pair for all
        each = weights["backbone.distance_biases"]
        biases_2HK = each[layer] if len(each) > 1 else each[0]

    def normed(x: Tensor, which: str) -> Tensor:
        return layer_norm(x, weights[f"{name}.{which}.weight"], weights[f"{name}.{which}.bias"])

    looked_at = [normed(x, "memory.norm") for x in x_RD]
    attended, keys, values = attention(
        weights,
        f"{name}.memory.attention",
        model.backbone.heads,
        looked_at,
        positions,
        sees,
        first,
        biases_2HK,
        clamp_len,
    )
    rows = [x + a for x, a in zip(x_RD[first:], attended, strict=True)]
    for i, x in enumerate(rows):
        hidden = gelu(
            weights[f"{name}.ffn.up.weight"] @ normed(x, "ffn_norm") + weights[f"{name}.ffn.up.bias"]
        )
        rows[i] = x + weights[f"{name}.ffn.down.weight"] @ hidden + weights[f"{name}.ffn.down.bias"]
    return rows, keys, values


def final_norm(model: nn.Module, x_D: Tensor) -> Tensor:
    """The normalisation after the last block."""
    weights = dict(model.named_parameters())
    return layer_norm(x_D, weights["backbone.norm.weight"], weights["backbone.norm.bias"])


def stack(
    model: nn.Module, x_RD: Sequence[Tensor], positions: Sequence[int], sees: Sees
) -> tuple[list[Tensor], list]:
    """Pre-LN blocks and the final normalisation for one batch row: outputs by row,
    and (keys, values) of each layer.
    """
    rows, kept = list(x_RD), []
    for layer in range(len(model.backbone.blocks)):
        rows, keys, values = block(model, layer, rows, positions, sees)
        kept.append((keys, values))
    return [final_norm(model, x) for x in rows], kept


def head(model: nn.Module, y_D: Tensor) -> Tensor:
    """Logits [V]."""
    weights = dict(model.named_parameters())
    return weights["backbone.head.weight"] @ y_D + weights["backbone.head.bias"]


def random_like(*tensors: Tensor) -> list[Tensor]:
    """Fixed random numbers of these tensors' shapes: the weights of a scalar loss."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]


def assert_same_values_and_gradients(
    model: nn.Module,
    actual: Sequence[Tensor],
    expected: Sequence[Tensor],
    inputs: Sequence[Tensor] = (),
    idle: Sequence[str] = (),
) -> None:
    """Equal outputs, and equal gradients of one random scalar loss over all of them.

    Gradients are compared in every parameter and in `inputs`, except the parameters named in `idle`, which
    must receive none.
    """
    parameters = dict(model.named_parameters())
    leaves = parameters | {f"input {i}": t for i, t in enumerate(inputs)}
    gradients = []
    for outputs in (actual, expected):
        loss = sum((w * t).sum() for w, t in zip(random_like(*expected), outputs, strict=True))
        gradients.append(torch.autograd.grad(loss, list(leaves.values()), allow_unused=True))
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10, msg=lambda m, i=i: f"output {i}: {m}")
    for name, a, e in zip(leaves, *gradients, strict=True):
        if name in idle:
            assert a is None and e is None, f"{name} has no part in this and receives gradient"
            continue
        assert e is not None and e.abs().max() > 0, (
            f"the reference's loss does not reach {name}: this comparison would be empty"
        )
        assert a is not None, f"no gradient reaches {name}"
        torch.testing.assert_close(
            a, e, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"gradient of {name}: {m}"
        )
