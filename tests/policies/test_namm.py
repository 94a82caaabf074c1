"""NAMM against its formulas, written as loops; several candidates at once; what a weights file has to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError, UserError
from memlab.layers.description import Description
from memlab.memories.base import Where
from memlab.memories.cached import CachedState
from memlab.models.decoder import Decoder
from memlab.policies import namm_weights
from memlab.policies.base import EMPTY
from memlab.policies.namm import NAMM
from memlab.policies.namm_weights import NAMMWeights, Sizes
from tests.building import decoder, tokens

SMALL: dict[str, Any] = {"n_fft": 6, "hop": 3, "ages": 4, "hidden": 5, "decay": 0.9}
DESCRIPTION = Description(layer=1, layers=2, width=8, heads=2, kv_heads=2, head_width=4, ffn_width=8)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def model(candidates: int = 1, layers: int = 1, seed: int = 0, scale: float = 1.0, **policy: Any) -> Decoder:
    """A model with NAMM in each layer and random parameters, which drop about half of the tokens."""
    options = {"layers": layers, "heads": 4, "kv_heads": 2, "width": 16, "head_width": 4}
    found = decoder("cached", policy={"name": "namm", **SMALL, **policy}, **options)
    parameters = scale * normal(candidates, Sizes(**SMALL).parameters, seed=seed)
    mean, std = 0.1 * normal(4, seed=8), 0.05 + normal(4, seed=9).abs() / 20
    for memory in found.backbone.memories:
        memory.policy.parameters_Pn = parameters  # type: ignore[union-attr]
        memory.policy.mean_F, memory.policy.std_F = mean, std  # type: ignore[union-attr]
    return found


def policies(of: Decoder) -> list[NAMM]:
    return [memory.policy for memory in of.backbone.memories]  # type: ignore[misc]


def kept(state: CachedState, row: int, head: int) -> list[int]:
    return [p for p in state.position_BGC[row, head].tolist() if p != EMPTY]


def reference(of: Decoder, tokens_T: Tensor, ends: list[int], parameters_n: Tensor) -> list[list[list[int]]]:
    """Positions that stay in each head after each decision, in a model of one layer: the formulas as loops.

    Args:
        ends: positions before which a decision comes.
    """
    memory, policy = of.backbone.memories[0], policies(of)[0]
    length = len(tokens_T)
    where = Where(
        0, length, 1, of.device, rotary=of.backbone.rotary, offset_B=torch.zeros(1, dtype=torch.long)
    )
    x = of.backbone.embedded(tokens_T[None], where, 0)
    q, k, _ = memory.project(x, where.turn(0, length, x.dtype))
    n_fft, hop, width, hidden, decay = (SMALL[name] for name in ("n_fft", "hop", "ages", "hidden", "decay"))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft)
    heads, found = q.shape[1], []
    cache: list[list[int]] = [[], []]
    received: list[dict[int, dict[int, float]]] = [{}, {}]  # of each head: by key, by time
    means: list[dict[int, Any]] = [{}, {}]
    for begin, end in zip([0, *ends], ends, strict=False):
        for g in range(2):
            there = cache[g] + list(range(begin, end))
            for key in range(begin, end):
                received[g][key], means[g][key] = {}, np.zeros(n_fft // 2 + 1)
            for query in range(begin, end):
                seen = [key for key in there if key <= query]
                weights = torch.stack(
                    [
                        torch.stack([q[0, h, query] @ k[0, g, key] / 2 for key in seen]).softmax(0)
                        for h in range(g * heads // 2, (g + 1) * heads // 2)
                    ]
                ).mean(0)
                for key, weight in zip(seen, weights.tolist(), strict=True):
                    received[g][key][query] = weight
            missing = -(end - begin) % hop
            times: list[int | None] = [None] * missing + list(range(begin - (n_fft - hop), end))
            for key in there:
                series = [0.0 if t is None else received[g][key].get(t, 0.0) for t in times]
                for start in range(0, len(series) - n_fft + 1, hop):
                    spectrum = np.abs(np.fft.rfft(hann * np.array(series[start : start + n_fft])))
                    means[g][key] = decay**hop * means[g][key] + (1 - decay**hop) * spectrum
            features = {}
            for key in there:
                age = end - 1 - key
                turns = [age * 50_000 ** (-i / (width // 2)) for i in range(width // 2)]
                scaled = (means[g][key] - policy.mean_F.numpy()) / policy.std_F.numpy()
                features[key] = np.array([*map(math.sin, turns), *map(math.cos, turns), *scaled])
            scores = score(features, parameters_n.numpy(), hidden)
            cache[g] = [key for key in there if scores[key] >= 0 or key == end - 1]
        found.append([list(cache[0]), list(cache[1])])
    return found


def score(features: dict[int, Any], theta: Any, hidden: int) -> dict[int, float]:
    f = len(next(iter(features.values())))
    sizes = [(f, 3 * hidden), (3 * hidden,), (hidden, 2 * f), (2 * f,), (f, 1), (1,)]
    starts = np.cumsum([0, *map(math.prod, sizes)])
    w1, b1, w2, b2, w3, b3 = (
        theta[a:b].reshape(shape) for a, b, shape in zip(starts, starts[1:], sizes, strict=False)
    )
    found = {}
    for i, x in features.items():
        newer = [j for j in features if j >= i]
        query = (x @ w1 + b1)[:hidden]
        logits = np.array([query @ (features[j] @ w1 + b1)[hidden : 2 * hidden] for j in newer]) / np.sqrt(
            hidden
        )
        weights = np.exp(logits - logits.max())
        y = sum(
            w * (features[j] @ w1 + b1)[2 * hidden :]
            for w, j in zip(weights / weights.sum(), newer, strict=True)
        )
        residual, factor = np.split(y @ w2 + b2, 2)
        found[i] = float(((x * (1 + factor) + residual) @ w3 + b3)[0])
    return found


@pytest.mark.parametrize("segments", [[6, 6, 6], [5, 7, 2, 4], [1, 3, 9]], ids=str)
@torch.no_grad()
def test_the_same_tokens_stay_as_in_loops(segments: list[int]) -> None:
    """Over several segments, also of lengths that `hop` does not divide; heads share keys."""
    one = model()
    read = tokens(2, sum(segments))
    state, at, ends = one.init_state(2), 0, []
    expected = [
        reference(one, row, np.cumsum(segments).tolist(), policies(one)[0].parameters_Pn[0]) for row in read
    ]
    for number, length in enumerate(segments):
        state = one.segment(read[:, at : at + length], state).state
        at += length
        ends.append([[kept(state.layers[0], row, head) for head in (0, 1)] for row in (0, 1)])
        assert ends[-1] == [expected[row][number] for row in (0, 1)]
    assert any(len(head) < at for row in ends[-1] for head in row), "something is dropped"
    assert any(len(head) > 1 for row in ends[-1] for head in row), "something stays"


@torch.no_grad()
def test_decisions_come_at_the_same_positions_in_pieces_and_in_generation() -> None:
    """With `every`, within a segment too; token by token is how a model generates."""
    one = model(layers=2, every=3)
    read = tokens(2, 16)
    ends = [3, 6, 8, 11, 14, 16]
    expected = [reference(one, row, ends, policies(one)[0].parameters_Pn[0])[-1] for row in read]
    whole = one.init_state(2)
    for part in read.split(8, dim=1):
        whole = one.segment(part, whole).state
    assert [[kept(whole.layers[0], row, head) for head in (0, 1)] for row in (0, 1)] == expected
    single: Any = None
    for token in read.unbind(1):
        single = list(one.stream(token[:, None], single, segment_length=8))[-1].state
    for layer, alone in zip(whole.layers, single.layers, strict=True):
        assert torch.equal(layer.position_BGC, alone.position_BGC)
        for a, b in zip(layer.tensors(), alone.tensors(), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_document_is_read_alike_alone_and_beside_others() -> None:
    """Documents that begin later, and heads of other sizes, do not touch its sets and its spectra."""
    one = model(layers=2)
    read = tokens(3, 18)
    fresh = torch.tensor([False, True, False])
    state = one.init_state(3)
    for number, part in enumerate(read.split(6, dim=1)):
        state = state.reset(fresh, one.init_state(3)) if number == 1 else state
        state = one.segment(part, state).state
    alone = one.init_state(1)
    for part in read[1:2, 6:].split(6, dim=1):
        alone = one.segment(part, alone).state
    for layer, single in zip(state.layers, alone.layers, strict=True):
        for head in (0, 1):
            assert kept(layer, 1, head) == kept(single, 0, head)
            filled, own = layer.position_BGC[1, head] != EMPTY, single.position_BGC[0, head] != EMPTY
            for a, b in zip(layer.of_rows.tensors(), single.of_rows.tensors(), strict=True):
                torch.testing.assert_close(a[1, head][filled], b[0, head][own], rtol=0, atol=1e-12)


@torch.no_grad()
def test_candidates_in_one_batch_decide_as_each_alone() -> None:
    together, read = model(candidates=3, layers=2), tokens(2, 12)
    state = together.init_state(6)
    logits = []
    for part in read.repeat(3, 1).split(6, dim=1):
        output = together.segment(part, state)
        logits.append(output.logits)
        state = output.state
    for candidate in range(3):
        one = model(layers=2)
        for policy, shared in zip(policies(one), policies(together), strict=True):
            policy.parameters_Pn = shared.parameters_Pn[[candidate]]
        alone = one.init_state(2)
        for number, part in enumerate(read.split(6, dim=1)):
            output = one.segment(part, alone)
            rows = slice(2 * candidate, 2 * candidate + 2)
            torch.testing.assert_close(logits[number][rows], output.logits, rtol=0, atol=1e-10)
            alone = output.state
        for layer, single in zip(state.layers, alone.layers, strict=True):
            for row, head in [(0, 0), (0, 1), (1, 0), (1, 1)]:
                assert kept(layer, 2 * candidate + row, head) == kept(single, row, head)


@torch.no_grad()
def test_with_all_parameters_zero_it_is_full_attention() -> None:
    zero, full = (
        model(layers=2, scale=0.0),
        decoder("full", layers=2, heads=4, kv_heads=2, width=16, head_width=4),
    )
    read = tokens(2, 3, 5)
    output, expected = zero(read), full(read)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-10)
    assert output.state.layers[0].position_BGC.shape[2] == 15


@torch.no_grad()
def test_the_newest_token_stays_whatever_its_score() -> None:
    one = model()
    for policy in policies(one):
        policy.parameters_Pn = torch.zeros_like(policy.parameters_Pn)
        policy.parameters_Pn[:, -1] = -1  # the bias of the score
    state = one(tokens(2, 3, 4)).state
    assert state.layers[0].position_BGC.flatten().tolist() == [11] * 4


@torch.no_grad()
def test_protected_tokens_and_the_budget() -> None:
    few = model(scale=0.0, budget=5)
    state = few(tokens(1, 3, 4)).state
    assert kept(state.layers[0], 0, 0) == [0, 1, 2, 3, 11], "equal scores: the older stay, and the newest"
    top = model(select="top_k", budget=5, sinks=2, recent=2)
    state = top(tokens(1, 3, 4)).state
    for head in (0, 1):
        positions = kept(state.layers[0], 0, head)
        assert len(positions) == 5 and {0, 1, 10, 11} <= set(positions)
    low = model(budget=5, sinks=2, recent=2)
    for policy in policies(low):
        policy.parameters_Pn = torch.zeros_like(policy.parameters_Pn)
        policy.parameters_Pn[:, -1] = -1
    assert kept(low(tokens(1, 3, 4)).state.layers[0], 0, 0) == [0, 1, 10, 11]


@torch.no_grad()
def test_what_is_stored_is_counted() -> None:
    """Of each row and head: key and value, position, F means, n_fft - hop attention values."""
    state = model(budget=6).init_state(3)
    numbers = 3 * 2 * 6 * (2 * 4 + (SMALL["n_fft"] // 2 + 1) + SMALL["n_fft"] - SMALL["hop"])
    assert state.nbytes == numbers * 8 + 3 * 2 * 6 * 4 + 3 * 8


def test_the_published_sizes_are_the_defaults() -> None:
    policy = NAMM(DESCRIPTION)
    assert policy.parameters_Pn.shape == (1, 4172)
    assert (policy.sizes.n_fft, policy.sizes.hop, policy.sizes.frequencies) == (32, 16, 17)
    assert not policy.state_dict(), "a checkpoint of the model does not have them"


def test_weights_are_written_and_read(tmp_path: Path) -> None:
    sizes = Sizes(**SMALL)
    weights = NAMMWeights(
        sizes, torch.arange(4.0), torch.arange(1.0, 5), torch.arange(float(sizes.parameters))
    )
    weights.write(tmp_path / namm_weights.FILE)
    assert [file.name for file in tmp_path.iterdir()] == ["policy.pt"]
    for place in (tmp_path, tmp_path / "policy.pt"):
        policy = NAMM(DESCRIPTION, weights=str(place), hop=3)
        assert policy.sizes == sizes
        assert torch.equal(policy.parameters_Pn[0], weights.parameters_n)
        assert torch.equal(policy.mean_F, weights.mean_F) and torch.equal(policy.std_F, weights.std_F)


def test_weights_of_another_size_are_one_message(tmp_path: Path) -> None:
    NAMMWeights.zero(Sizes(**SMALL)).write(tmp_path / "policy.pt")
    with pytest.raises(
        ConfigError, match=r"policy\.hidden=32: the weights in .* were evolved with policy\.hidden=5"
    ):
        NAMM(DESCRIPTION, weights=str(tmp_path), hidden=32)


def test_weights_that_are_not_there_or_damaged_are_one_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"policy\.weights=.*policy\.pt is missing; give the directory"):
        NAMM(DESCRIPTION, weights=str(tmp_path))
    (tmp_path / "policy.pt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"policy\.pt (is damaged|holds no weights)"):
        NAMM(DESCRIPTION, weights=str(tmp_path))
    torch.save({"a": torch.zeros(2)}, tmp_path / "policy.pt")
    with pytest.raises(UserError, match="is damaged"):
        NAMM(DESCRIPTION, weights=str(tmp_path))
    sizes = Sizes(**SMALL)
    NAMMWeights(sizes, torch.zeros(4), torch.ones(4), torch.zeros(7)).write(tmp_path / "policy.pt")
    with pytest.raises(UserError, match="its tensors are not of its sizes"):
        NAMM(DESCRIPTION, weights=str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_fft": 7}, r"policy\.n_fft=7 is odd"),
        ({"ages": 3}, r"policy\.ages=3 is odd"),
        ({"n_fft": 8, "hop": 9}, r"policy\.hop=9 is more than policy\.n_fft=8"),
        ({"select": "top_k"}, r"policy\.select=top_k .* policy\.budget=1\.0 has room for all"),
        ({"budget": 3, "sinks": 3}, r"policy\.budget=3 has no room for policy\.sinks=3 and policy\.recent=1"),
    ],
    ids=str,
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        NAMM(DESCRIPTION, **options)
