"""infinity-former against sections 3.1 to 3.4 of its paper (arXiv 2109.00301), written as loops."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.memories.infinity_former import InfinityState
from memlab.models.base import Model, ModelState, Output
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive, naive_memory

WIDTHS, J, M, TAU, RIDGE, V0, WEIGHT = (0.1, 0.3), 4, 5, 0.6, 0.2, 0.04, 0.7
OPTIONS: dict[str, Any] = {
    "basis_functions": J,
    "basis_widths": list(WIDTHS),
    "ridge": RIDGE,
    "contraction": TAU,
    "samples": M,
    "sticky": True,
    "density": "gaussian",
    "kl_weight": WEIGHT,
    "kl_width": math.sqrt(V0),
    "memory_gradient": True,
}
CASES: dict[str, dict[str, Any]] = {
    "sticky": {},
    "even": {"sticky": False},
    "parabola": {"density": "parabola"},
    "even parabola, shared head": {"density": "parabola", "sticky": False, "kv_heads": 1},
    "no gradient between segments": {"memory_gradient": False},
    "two shared heads, relative positions": {
        "heads": 4,
        "kv_heads": 2,
        "width": 16,
        "positions": "transformer_xl",
        "layers": 1,
    },
}
FORMS = pytest.mark.parametrize("form", ["recurrent", "parallel"])
EACH = pytest.mark.parametrize("changed", CASES.values(), ids=CASES.keys())
Signal = Tensor | None  # B [J, D] of one document in one layer; None = nothing has been written


def build(**changed: Any) -> Decoder:
    return building.decoder("infinity_former", **(OPTIONS | changed))


def psi(t: Tensor) -> Tensor:
    """[J] at one position, or [.., J]."""
    values = []
    for width in WIDTHS:
        for centre in (0.0, 1.0):  # J / 2 of them, evenly on [0, 1]
            values.append(torch.exp(-0.5 * ((t - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi)))
    return torch.stack(values, dim=-1)


NODES, WEIGHTS_OF_NODES = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(100))


def expected_psi(mean: Tensor, variance: Tensor, density: str) -> Tensor:
    """E_p[psi(t)] of one query: Gaussians as the paper says, the parabola by quadrature on its support."""
    if density == "gaussian":
        found = []
        for width in WIDTHS:
            for centre in (0.0, 1.0):
                both = variance + width**2
                found.append(torch.exp(-0.5 * (mean - centre) ** 2 / both) / torch.sqrt(2 * math.pi * both))
        return torch.stack(found)
    reach = (1.5 * variance) ** (1 / 3)
    t = mean + reach * NODES
    p = 0.5 * (3 / (2 * variance.sqrt())) ** (2 / 3) - (t - mean) ** 2 / (2 * variance)
    return ((WEIGHTS_OF_NODES * reach * p)[:, None] * psi(t)).sum(0)


def below(t: float, mean: float, variance: float, density: str) -> float:
    """How much of a density lies before t."""
    if density == "gaussian":
        return 0.5 * (1 + math.erf((t - mean) / math.sqrt(2 * variance)))
    u = min(1.0, max(-1.0, (t - mean) / (1.5 * variance) ** (1 / 3)))
    return 0.5 + 0.75 * u - 0.25 * u**3


def sticky_positions(looks: list[tuple[float, float]], density: str) -> list[float]:
    """M positions that cut the densities, summed over heads and queries in 128 bins, into equal parts."""
    edges = [e / 128 for e in range(129)]
    cumulated = [sum(below(e, m, v, density) for m, v in looks) for e in edges]
    shares = [b - a for a, b in itertools.pairwise(cumulated)]
    found = []
    for i in range(M):
        left, e = (i + 0.5) / M * sum(shares), 0
        while left > shares[e]:
            left, e = left - shares[e], e + 1
        found.append((e + left / shares[e]) / 128)
    return found


def fit(positions: list[float], rows: list[Tensor]) -> Tensor:
    """B by ridge regression."""
    F = torch.stack([psi(torch.tensor(t, dtype=torch.float64)) for t in positions], dim=1)  # [J, L]
    return torch.linalg.inv(F @ F.T + RIDGE * torch.eye(J, dtype=torch.float64)) @ F @ torch.stack(rows)


def updated(signal: Signal, rows: list[Tensor], at: list[float]) -> Tensor:
    """Section 3.2: the signal at M positions, moved to (0, tau], and the new rows behind them."""
    n = len(rows)
    if signal is None:
        return fit([(i + 1) / n for i in range(n)], rows)
    old = [psi(torch.tensor(t, dtype=torch.float64)) @ signal for t in at]
    moved = [TAU * (i + 1) / M for i in range(M)] + [TAU + (1 - TAU) * (i + 1) / n for i in range(n)]
    return fit(moved, [*old, *rows])


def read_segment(
    model: Model, tokens_N: Tensor, signals: list[Signal], options: dict[str, Any]
) -> tuple[Tensor, Tensor, list[Signal]]:
    """One segment of one document: logits [N, V], auxiliary loss, and each layer's signal after it."""
    weights = dict(model.named_parameters())
    heads, groups, width = model.backbone.heads, model.backbone.kv_heads, model.backbone.head_width
    losses: list[Tensor] = []
    after: list[Signal] = []

    def attend(layer: int, queries: list, keys: list, values: list) -> list:
        found = []
        for h, of_head in enumerate(queries):
            g = h * groups // heads
            placed = [naive_memory.placed(model, key, j) for j, key in enumerate(keys[g])]
            outputs = []
            for i, query in enumerate(of_head):
                asks = naive_memory.placed(model, query, i)
                scores = [
                    naive_memory.local_score(model, layer, h, asks, placed[j], i - j) for j in range(i + 1)
                ]
                outputs.append(naive_memory.weighted(scores, values[g][: i + 1]))
            found.append(outputs)
        return found

    def beside(layer: int, rows: list[Tensor], queries: list) -> list[Tensor]:
        name = f"backbone.blocks.{layer}.memory"
        signal = signals[layer]
        if not options["memory_gradient"]:
            signal = None if signal is None else signal.detach()
            rows_kept = [row.detach() for row in rows]
        else:
            rows_kept = rows
        if signal is None:
            after.append(updated(None, rows_kept, []))
            return [torch.zeros(())] * len(rows)
        W_K, W_V = weights[f"{name}.memory_kv.weight"].view(2, groups, width, -1)
        joined: list[list[Tensor]] = [[] for _ in rows]
        looks, divergences = [], []
        for h in range(heads):
            g = h * groups // heads
            K, V = signal @ W_K[g].T, signal @ W_V[g].T  # [J, K]
            for i, q in enumerate(queries[h]):
                to_mean, to_variance = (
                    weights[f"{name}.affine.weight"] @ (K @ q / math.sqrt(width))
                    + weights[f"{name}.affine.bias"]
                )
                mean, variance = 1 / (1 + torch.exp(-to_mean)), torch.log(1 + torch.exp(to_variance))
                looks.append((mean.item(), variance.item()))
                divergences.append(0.5 * (variance / V0 - torch.log(variance / V0) - 1))
                joined[i].append(V.T @ expected_psi(mean, variance, options["density"]))
        losses.append(WEIGHT * sum(divergences) / len(divergences))
        at = sticky_positions(looks, options["density"])
        after.append(updated(signal, rows_kept, at if options["sticky"] else [(i + 1) / M for i in range(M)]))
        return [weights[f"{name}.memory_out.weight"] @ torch.cat(row) for row in joined]

    logits = naive_memory.read_segment(model, tokens_N, attend, beside)
    return logits, sum(losses, torch.zeros((), dtype=torch.float64)), after


def read_all(
    model: Model, tokens_BSN: Tensor, signals: list[list[Signal]], changed: dict[str, Any]
) -> tuple[Tensor, Tensor, list[list[Signal]]]:
    """Each document by itself: logits [B, S, N, V], losses [B, S] and last signals."""
    options, logits, losses, last = OPTIONS | changed, [], [], []
    for tokens_SN, own in zip(tokens_BSN, signals, strict=True):
        for tokens_N in tokens_SN:
            of_segment, loss, own = read_segment(model, tokens_N, own, options)
            logits.append(of_segment)
            losses.append(loss)
        last.append(own)
    shape = tokens_BSN.shape[:2]
    return torch.stack(logits).unflatten(0, shape), torch.stack(losses).unflatten(0, shape), last


def nothing(model: Model, batch: int) -> list[list[Signal]]:
    return [[None] * len(model.backbone.blocks) for _ in range(batch)]


def by_layer(signals: list[list[Signal]]) -> list[Tensor]:
    return [torch.stack(layer) for layer in zip(*signals, strict=True)]  # type: ignore[arg-type]


def signals_of(state: ModelState) -> list[Tensor]:
    assert all(layer.written_B.all() for layer in state.layers)
    return [layer.signal_BJD for layer in state.layers]


def everything(output: Output) -> list[Tensor]:
    assert output.auxiliary is not None
    return [output.logits, output.auxiliary, *signals_of(output.state)]


@FORMS
@EACH
def test_logits_losses_signals_and_gradients_equal_the_paper_formulas(
    changed: dict[str, Any], form: str
) -> None:
    model, tokens_BSN = build(**changed), tokens(2, 3, 3)
    output = getattr(model, form)(tokens_BSN, model.init_state(2))
    logits, losses, signals = read_all(model, tokens_BSN, nothing(model, 2), changed)
    naive.assert_same_values_and_gradients(model, everything(output), [logits, losses, *by_layer(signals)])


@FORMS
@pytest.mark.parametrize(("batch", "segments", "length"), [(1, 4, 1), (2, 2, 7)])
def test_segments_of_any_size(form: str, batch: int, segments: int, length: int) -> None:
    """One row, or more than the signal has functions."""
    model, tokens_BSN = build(layers=1), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    logits, losses, signals = read_all(model, tokens_BSN, nothing(model, batch), {})
    naive.assert_same_values_and_gradients(model, everything(output), [logits, losses, *by_layer(signals)])


@FORMS
def test_a_carried_signal_enters_as_the_paper_says_and_receives_gradient(form: str) -> None:
    model, tokens_BSN = build(), tokens(2, 2, 3)
    leaves = [t.requires_grad_() for t in naive.random_like(*[torch.empty(2, J, 8)] * 2)]
    written_B = torch.ones(2, dtype=torch.bool)
    layers = tuple(InfinityState(leaf, written_B) for leaf in leaves)
    output = getattr(model, form)(tokens_BSN, dataclasses.replace(model.init_state(2), layers=layers))
    carried = [[leaf[b] for leaf in leaves] for b in range(2)]
    logits, losses, signals = read_all(model, tokens_BSN, carried, {})
    naive.assert_same_values_and_gradients(
        model, everything(output), [logits, losses, *by_layer(signals)], inputs=leaves
    )


@FORMS
def test_one_document_begins_while_others_go_on(form: str) -> None:
    """Its first signal has all of [0, 1]; the loss of its first segment is 0."""
    model, tokens_BSN = build(layers=1), tokens(3, 4, 2)
    read = getattr(model, form)
    first = read(tokens_BSN[:, :2], model.init_state(3))
    rows = torch.tensor([False, True, False])
    second = read(tokens_BSN[:, 2:], first.state.reset(rows, model.init_state(3)))
    before_logits, before_losses, signals = read_all(model, tokens_BSN[:, :2], nothing(model, 3), {})
    signals[1] = [None]
    logits, losses, signals = read_all(model, tokens_BSN[:, 2:], signals, {})
    assert losses[1, 0] == 0 < losses[0, 0]
    expected = [before_logits, before_losses, logits, losses, *by_layer(signals)]
    actual = [first.logits, first.auxiliary, *everything(second)]
    naive.assert_same_values_and_gradients(model, actual, expected)


@pytest.mark.parametrize("pieces", [[4], [1, 3], [1, 1, 1, 1]])
def test_pieces(pieces: list[int]) -> None:
    """Values and gradients; sticky positions come from all pieces together."""
    model, tokens_BSN = build(kl_weight=0.0), tokens(2, 3, 4)
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    logits, _, signals = read_all(model, tokens_BSN, nothing(model, 2), {})
    naive.assert_same_values_and_gradients(
        model, [logits_BTV.unflatten(1, (3, 4)), *signals_of(state)], [logits, *by_layer(signals)]
    )


def test_the_signal_is_the_past() -> None:
    """With many functions and a small penalty, x(t) passes through the rows, the older ones at its front."""
    model = build(layers=1, basis_functions=60, basis_widths=[0.02], ridge=1e-6, samples=40, sticky=False)
    memory = model.backbone.memories[0]
    segments, state = tokens(1, 2, 5), model.init_state(1)
    for tokens_BN in segments.unbind(1):
        state = model.segment(tokens_BN, state).state
    rows = [memory.normed(model.backbone.embed(tokens_BN))[0] for tokens_BN in segments.unbind(1)]
    at = torch.arange(1, 6, dtype=torch.float64) / 5
    new, old = (
        memory.basis.values(t) @ state.layers[0].signal_BJD[0] for t in (TAU + (1 - TAU) * at, TAU * at)
    )
    torch.testing.assert_close(new, rows[1], rtol=0, atol=1e-2)
    torch.testing.assert_close(old, rows[0], rtol=0, atol=0.3)


def test_state_bytes() -> None:
    """J D numbers and a flag in each layer, whatever was read."""
    for dtype, size in ((torch.float64, 8), (torch.float32, 4), (torch.bfloat16, 4)):
        model = build(basis_functions=6).to(dtype)
        with torch.no_grad():
            assert model(tokens(3, 2, 5)).state.nbytes == 3 * 2 * (6 * 8 * size + 1)


def test_diagnostics_and_the_loss_draw_to_the_same_width() -> None:
    """A density of the prior's width has no divergence."""
    model = build(layers=1)
    with torch.no_grad():
        affine = model.backbone.memories[0].affine
        affine.weight.zero_()
        affine.bias[1] = math.log(math.expm1(V0))
    output = model(tokens(2, 3, 4))
    assert output.auxiliary is not None
    torch.testing.assert_close(output.auxiliary, torch.zeros(2, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    assert output.diagnostics["density_width/layer1"][0] == pytest.approx(math.sqrt(V0))
    assert build(kl_weight=0.0)(tokens(2, 3, 4)).auxiliary is None


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"basis_functions": 5}, "model.basis_functions=5 is not a multiple"),
        ({"basis_widths": []}, "model.basis_widths"),
        ({"contraction": 1.0}, "model.contraction=1.0"),
    ],
)
def test_mistakes(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        build(**changed)
