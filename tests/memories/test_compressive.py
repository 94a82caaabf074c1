"""The Compressive Transformer against algorithms 1 and 2 of its paper (arXiv 1911.05507), as loops over lists
of rows.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memlab.models.decoder import Decoder
from tests import building
from tests.building import read_in_pieces, tokens
from tests.models import naive, naive_memory

Layer = tuple[list[Tensor], list[Tensor]]  # m and cm of one layer in one document, the oldest row first
COMPRESSIONS = pytest.mark.parametrize("compression", ["convolution", "mean", "max"])


def build(**options: Any) -> Decoder:
    sizes = {"mem_len": 3, "compressed_len": 2, "compression_rate": 2}
    return building.decoder("compressive", **(sizes | options))


def compressed(model: Decoder, layer: int, old: list[Tensor]) -> list[Tensor]:
    """f_c of algorithm 1: groups of c, counted from the newest row, to one row each."""
    memory = model.backbone.memories[layer]
    groups = [old[max(0, end - memory.rate) : end] for end in range(len(old), 0, -memory.rate)][::-1]
    if memory.compression == "mean":
        return [torch.stack(group).sum(0) / len(group) for group in groups]
    if memory.compression == "max":
        return [torch.stack(group).max(0).values for group in groups]
    kernel_DcD = memory.convolution.weight.unflatten(1, (memory.rate, -1))
    return [
        sum(
            (kernel_DcD[:, memory.rate - len(group) + i] @ row for i, row in enumerate(group)),
            memory.convolution.bias,
        )
        for group in groups
    ]


def content(model: Decoder, layer: int, h: list[Tensor], rows: list[Tensor]) -> list[Tensor]:
    """attn(h, m) of algorithm 2, with constants for all weights: each head's output for each row of h."""
    name = f"backbone.blocks.{layer}.memory"
    weights = {key: value.detach() for key, value in model.named_parameters()}
    heads, groups = model.backbone.heads, model.backbone.kv_heads
    bias = weights.get(f"{name}.attention.qkv.bias", torch.zeros(()))

    def parts(x_D: Tensor) -> Tensor:
        normed = naive.layer_norm(x_D, weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
        return (weights[f"{name}.attention.qkv.weight"] @ normed + bias).view(heads + 2 * groups, -1)

    asking, asked = [parts(x) for x in h], [parts(x) for x in rows]
    found = []
    for head in range(heads):
        g = heads + head * groups // heads
        for q in asking:
            scores = [q[head] @ k[g] / len(q[head]) ** 0.5 for k in asked]
            found.append(naive_memory.weighted(scores, [k[g + groups] for k in asked]))
    return found


def read_segment(model: Decoder, tokens_N: Tensor, layers: list[Layer]) -> tuple[Tensor, Tensor]:
    """One segment of one document: logits [N, V] and the auxiliary loss; `layers` is changed."""
    rows = [dict(model.named_parameters())["backbone.embed.weight"][t] for t in tokens_N]
    loss = torch.zeros((), dtype=torch.float64)
    for number, (m, cm) in enumerate(layers):
        memory = model.backbone.memories[number]
        seen = [*cm, *m]
        positions = range(-len(seen), len(rows))
        after, _, _ = naive.block(
            model, number, [*seen, *rows], positions, lambda i, j: j <= i, first=len(seen)
        )
        h = [x.detach() for x in rows]
        everything = m + h
        old = everything[: max(0, len(everything) - memory.mem_len)]
        new = compressed(model, number, old)
        if old and memory.compression == "convolution":
            both = zip(content(model, number, h, old), content(model, number, h, new), strict=True)
            loss = loss + torch.stack([(a - b).square().mean() for a, b in both]).mean()
        layers[number] = (
            everything[len(everything) - min(memory.mem_len, len(everything)) :],
            [*cm, *(x.detach() for x in new)][-memory.compressed_len :],
        )
        rows = after
    return torch.stack([naive.head(model, naive.final_norm(model, x)) for x in rows]), loss


def read_all(model: Decoder, tokens_BSN: Tensor) -> tuple[Tensor, Tensor, list[list[Layer]]]:
    """Logits, auxiliary losses [B, S], and the memories of each document after the last segment."""
    logits, losses, after = [], [], []
    for tokens_SN in tokens_BSN:
        layers: list[Layer] = [([], []) for _ in model.backbone.blocks]
        parts = [read_segment(model, tokens_N, layers) for tokens_N in tokens_SN]
        logits.append(torch.stack([part[0] for part in parts]))
        losses.append(torch.stack([part[1] for part in parts]))
        after.append(layers)
    return torch.stack(logits), torch.stack(losses), after


CASES = pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 4, 2), {}),
        ((1, 4, 3), {"positions": "transformer_xl", "compressed_len": 4}),
        (
            (2, 3, 4),
            {"heads": 4, "kv_heads": 2, "width": 16, "layers": 1, "mem_len": 2, "compression_rate": 3},
        ),
        ((1, 5, 1), {"compression_rate": 3, "mem_len": 1, "compressed_len": 3}),
        ((1, 2, 5), {"mem_len": 0, "compression_rate": 1, "compressed_len": 7, "kv_heads": 1}),
    ],
    ids=str,
)


@CASES
@COMPRESSIONS
def test_logits_memories_losses_and_gradients_equal_the_papers_algorithms(
    compression: str, shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    model, tokens_BSN = build(compression=compression, **options), tokens(*shape)
    learned = compression == "convolution"
    for form in (model.recurrent, model.parallel):
        output = form(tokens_BSN, model.init_state(shape[0]))
        logits, losses, after = read_all(model, tokens_BSN)
        actual = [output.logits, *([output.auxiliary] if learned else [])]
        assert learned or output.auxiliary is None
        naive.assert_same_values_and_gradients(model, actual, [logits, *([losses] if learned else [])])
        for number, layer in enumerate(output.state.layers):
            for b, document in enumerate(after):
                m, cm = document[number]
                counts = int(layer.memory_B[b]), int(layer.compressed_B[b])
                assert counts == (len(m), len(cm))
                for rows, stored, count in zip(
                    (m, cm), (layer.memory_BMD, layer.compressed_BCD), counts, strict=True
                ):
                    if count:
                        torch.testing.assert_close(
                            stored[b, -count:], torch.stack(rows), rtol=1e-10, atol=1e-10
                        )
    pieces, _ = read_in_pieces(model, tokens_BSN, [1] * shape[2])
    torch.testing.assert_close(pieces, logits.flatten(1, 2), rtol=1e-10, atol=1e-10)


def test_the_loss_of_its_own_only_reaches_the_convolution() -> None:
    model = build(positions="transformer_xl")
    output = model(tokens(2, 4, 3))
    assert output.auxiliary is not None and output.auxiliary.shape == (2, 4)
    assert (output.auxiliary[:, 0] == 0).all()  # nothing has left the memory yet
    output.auxiliary.sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached == {
        f"backbone.blocks.{n}.memory.convolution.{p}" for n in (0, 1) for p in ("weight", "bias")
    }
    model.zero_grad()
    model(tokens(2, 4, 3)).logits.sum().backward()
    assert all(p.grad is None for name, p in model.named_parameters() if "convolution" in name)


def test_training_the_convolution_reduces_its_loss() -> None:
    model = build(mem_len=6, compressed_len=6).float()
    x = tokens(4, 4, 6)
    convolutions = [p for name, p in model.named_parameters() if "convolution" in name]
    optimizer = torch.optim.Adam(convolutions, lr=0.01)
    losses = []
    for _ in range(40):
        loss = model(x).auxiliary.sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]


@COMPRESSIONS
def test_bytes_of_the_state(compression: str) -> None:
    """Closed form: l D (n_m + n_cm) numbers, as the paper counts, and two counters in each layer."""
    model = build(compression=compression, width=24, layers=3, mem_len=5, compressed_len=7).float()
    for segments in (1, 6):
        assert model(tokens(2, segments, 3)).state.nbytes == 2 * 3 * (24 * (5 + 7) * 4 + 2 * 8)


def test_a_compressed_row_is_what_its_group_was() -> None:
    """A rate of 1 with the mean is Transformer-XL with a longer memory."""
    compressive = build(compression="mean", compression_rate=1, mem_len=2, compressed_len=4)
    longer: nn.Module = building.decoder("transformer_xl", mem_len=6)
    x = tokens(2, 5, 2)
    torch.testing.assert_close(compressive(x).logits, longer(x).logits, rtol=1e-10, atol=1e-10)
