"""A decoder Transformer straight from the papers' formulas, in loops over batch rows, heads, queries and keys.

It takes nothing from memlab but the weights, which it finds by their names, so that gradients of a loss computed here and of one
computed by a model arrive at the same parameters. A row of the input is one vector [D]; who sees whom is asked for each pair of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

Weights = dict[str, Tensor]
M = TypeVar("M", bound=nn.Module)
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


def attention(weights: Weights, name: str, heads: int, x_RD: list[Tensor], positions: Sequence[int], sees: Sees) -> tuple[list, list, list]:
    """ "Attention Is All You Need" (arXiv 1706.03762), 3.2.1 and 3.2.2: outputs by row, keys and values by [head][row]."""
    width = len(x_RD[0])
    head_width = width // heads
    query_matrix, key_matrix, value_matrix = weights[f"{name}.qkv.weight"].split(width)
    query_bias, key_bias, value_bias = weights[f"{name}.qkv.bias"].split(width)
    heads_RHK: list[list[Tensor]] = [[] for _ in x_RD]
    all_keys, all_values = [], []
    for h in range(heads):
        own = slice(h * head_width, (h + 1) * head_width)
        queries = [turn(query_matrix[own] @ x + query_bias[own], p) for x, p in zip(x_RD, positions, strict=True)]
        keys = [turn(key_matrix[own] @ x + key_bias[own], p) for x, p in zip(x_RD, positions, strict=True)]
        values = [value_matrix[own] @ x + value_bias[own] for x in x_RD]
        for i, query in enumerate(queries):
            seen = [j for j in range(len(keys)) if sees(i, j)]
            weight = torch.exp(torch.stack([query @ keys[j] for j in seen]) / math.sqrt(head_width))
            weight = weight / weight.sum()
            heads_RHK[i].append(torch.stack([w * values[j] for w, j in zip(weight.unbind(), seen, strict=True)]).sum(0))
        all_keys.append(keys)
        all_values.append(values)
    return [weights[f"{name}.out.weight"] @ torch.cat(row) for row in heads_RHK], all_keys, all_values


def stack(model: nn.Module, x_RD: Sequence[Tensor], positions: Sequence[int], sees: Sees) -> tuple[list[Tensor], list]:
    """Pre-LN blocks and the final normalisation for one batch row: outputs by row, and (keys, values) of each layer."""
    weights, heads, rows, kept = dict(model.named_parameters()), model.stack.heads, list(x_RD), []
    for layer in range(len(model.stack.blocks)):
        name = f"stack.blocks.{layer}"

        def normed(x: Tensor, which: str, name: str = name) -> Tensor:
            return layer_norm(x, weights[f"{name}.{which}.weight"], weights[f"{name}.{which}.bias"])

        attended, keys, values = attention(
            weights, f"{name}.attention", heads, [normed(x, "attention_norm") for x in rows], positions, sees
        )
        rows = [x + a for x, a in zip(rows, attended, strict=True)]
        for i, x in enumerate(rows):
            hidden = gelu(weights[f"{name}.ffn.0.weight"] @ normed(x, "ffn_norm") + weights[f"{name}.ffn.0.bias"])
            rows[i] = x + weights[f"{name}.ffn.2.weight"] @ hidden + weights[f"{name}.ffn.2.bias"]
        kept.append((keys, values))
    return [layer_norm(x, weights["stack.norm.weight"], weights["stack.norm.bias"]) for x in rows], kept


def head(model: nn.Module, y_D: Tensor) -> Tensor:
    """Logits [V]."""
    weights = dict(model.named_parameters())
    return weights["head.weight"] @ y_D + weights["head.bias"]


def disturb(model: M) -> M:
    """The model in float64 with noise on every parameter: biases of 0 and gains of 1 would hide mistakes in their use."""
    generator = torch.Generator().manual_seed(1)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def random_like(*tensors: Tensor) -> list[Tensor]:
    """Fixed random numbers of these tensors' shapes: the weights of a scalar loss."""
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64) for t in tensors]


def assert_same_values_and_gradients(
    model: nn.Module, actual: Sequence[Tensor], expected: Sequence[Tensor], inputs: Sequence[Tensor] = (), idle: Sequence[str] = ()
) -> None:
    """Equal outputs, and equal gradients of one random scalar loss over all of them.

    Gradients are compared in every parameter and in `inputs`, except the parameters named in `idle`, which must receive none.
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
        assert e is not None and e.abs().max() > 0, f"the reference's loss does not reach {name}: this comparison would be empty"
        assert a is not None, f"no gradient reaches {name}"
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"gradient of {name}: {m}")
