"""Pretrained weights in our blocks against transformers' own models: logits and all gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers.attention import ALL
from memlab.memories.base import Where
from memlab.models.base import Model
from memlab.models.pretrained.families import FAMILIES
from tests.building import read_in_pieces
from tests.pretrained import tiny
from tests.pretrained.tiny import DECODERS, tokens


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", DECODERS)
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    reference = tiny.save(name, tmp_path, max_shard_size="20KB" if name == "llama" else "1GB")
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (name == "llama")
    model, tokens_BN = tiny.ours(tmp_path), tokens(2, 13)
    logits_BNV, expected_BNV = model(tokens_BN[:, None]).logits[:, 0], reference(tokens_BN).logits
    close(logits_BNV, expected_BNV)
    weight = torch.randn(logits_BNV.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (logits_BNV * weight).sum().backward()
    (expected_BNV * weight).sum().backward()
    assert_same_gradients(model, reference, name)


def test_layers_without_biases_have_no_place_for_those_of_gpt2(tmp_path: Path) -> None:
    tiny.save("gpt2", tmp_path)
    with pytest.raises(ConfigError, match=r"layers of gated_deltanet have no place .*attn\.bias"):
        tiny.ours(tmp_path, "gated_deltanet")


@pytest.mark.parametrize("name", DECODERS)
def test_a_past_and_pieces(name: str, tmp_path: Path) -> None:
    """Full context in segments of any length, whole and in pieces, against transformers with its cache."""
    reference = tiny.save(name, tmp_path)
    model, tokens_BT = tiny.ours(tmp_path, "transformer", "model.context=full"), tokens(2, 16)
    with torch.no_grad():
        expected = reference(tokens_BT).logits
        past = reference(tokens_BT[:, :7], use_cache=True)
        rest = reference(tokens_BT[:, 7:], cache=past.cache).logits  # positions 7 ..
        close(rest, expected[:, 7:])
        state, found = model.init_state(2), []
        for part in tokens_BT.split([7, 4, 5], dim=1):  # segments, with a remainder
            output = model.segment(part, state)
            found.append(output.logits)
            state = output.state
        close(torch.cat(found, 1), expected)
        logits, _ = read_in_pieces(model, tokens_BT.unflatten(1, (2, 8)), [3, 1, 4])
        close(logits, expected)


def test_a_bidirectional_model_has_the_hidden_states_of_bert(tmp_path: Path) -> None:
    reference = tiny.save("bert", tmp_path)
    # there, token 0 is padding, whose embedding gets no gradient
    model, tokens_BN = tiny.ours(tmp_path, "rmt_encoder"), tokens(2, 13).clamp(min=1)
    y_BND, expected_BND = both_ways(model, tokens_BN), reference(tokens_BN).last_hidden_state
    close(y_BND, expected_BND)
    weight = torch.randn(y_BND.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y_BND * weight).sum().backward()
    (expected_BND * weight).sum().backward()
    assert_same_gradients(model, reference, "bert")


def both_ways(model: Model, tokens_BN: Tensor) -> Tensor:
    """The normalised outputs of a segment's tokens, each of which looks at all, without memory tokens."""
    b, n = tokens_BN.shape
    everything = torch.ones(n, n, dtype=torch.bool)
    where = Where(start=0, count=n, batch_size=b, device=model.device, mask=everything)
    x = model.backbone.embedded(tokens_BN, where, 0)
    states = model.init_state(b).layers
    return model.backbone.read("segment", x, states, where, ALL).top_BTD


def assert_same_gradients(model: Model, reference: Any, name: str) -> None:
    """Of every parameter of ours, made of those of transformers' as the weights are."""
    kind = {"gpt2": "gpt2", "bert": "bert"}.get(name, "llama")
    family = FAMILIES[kind]
    theirs = {key.removeprefix(family.PREFIX): p.grad for key, p in reference.named_parameters()}
    mine = {key: p.grad for key, p in model.backbone.named_parameters()}
    values = {"layers": 3, "heads": model.backbone.heads, "kv_heads": model.backbone.kv_heads}
    values |= {"head_width": model.backbone.head_width, "ffn_width": 14}
    values["tied_head"] = model.backbone.head.weight is model.backbone.embed.weight
    attention, ffn = model.backbone.blocks[0].memory.attention, model.backbone.blocks[0].ffn
    linears = {"qkv": attention.qkv, "out": attention.out, "ffn": ffn.up}
    values["biases"] = [of for of, linear in linears.items() if linear.bias is not None]
    values["qk_norm"] = attention.q_norm is not None
    parts = family.parts(values)
    assert {part.ours for part in parts} == mine.keys()
    for part in parts:
        if part.may_lack:
            assert mine[part.ours] is None or not mine[part.ours].any()
            continue
        expected = torch.cat([theirs.pop(n).T if part.transposed else theirs.pop(n) for n in part.theirs])
        close(mine[part.ours], expected)
        if part.added is not None:
            close(mine[part.ours].sum(0), theirs.pop(part.added)[0])
    assert all(grad is None for key, grad in theirs.items()), theirs.keys()


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen3", "gpt2", "bert"])
def test_without_a_change_transformers_computes_the_same_to_its_own_precision(
    name: str, tmp_path: Path
) -> None:
    """`tiny.exact` only changes the precision."""
    reference = tiny.reference(name).float()
    reference.save_pretrained(tmp_path)
    model, tokens_BN = tiny.ours(tmp_path, "rmt_encoder" if name == "bert" else "transformer"), tokens(2, 13)
    if name == "bert":
        actual, expected = both_ways(model, tokens_BN), reference(tokens_BN).last_hidden_state
    else:
        actual, expected = model(tokens_BN[:, None]).logits[:, 0], reference(tokens_BN).logits
    torch.testing.assert_close(actual.float(), expected, rtol=1e-4, atol=1e-4)


def test_a_context_beyond_the_sliding_window_is_refused(tmp_path: Path) -> None:
    reference = tiny.save("mistral", tmp_path)
    model = tiny.ours(tmp_path)
    close(model(tokens(1, 3, 16)).logits[:, 1], reference(tokens(1, 3, 16)[:, 1]).logits)
    with pytest.raises(
        ConfigError, match=r"position 16, and this model looks back over a window of 16 tokens"
    ):
        model(tokens(1, 1, 17))
    full = tiny.ours(tmp_path, "transformer", "model.context=full")
    with pytest.raises(ConfigError, match=r"position 17, .* use shorter segments"):
        full(tokens(1, 3, 6))


def test_more_ids_than_the_weights_have_begin_as_their_mean(tmp_path: Path) -> None:
    """Such as the one that begins a document; the others are untouched."""
    reference = tiny.save("llama3", tmp_path)
    model = tiny.ours(tmp_path, vocab_size=tiny.VOCABULARY + 2)
    embedding, head = model.backbone.embed.weight, model.backbone.head.weight
    assert len(embedding) == len(head) == tiny.VOCABULARY + 2
    for ours, theirs in ((embedding, reference.model.embed_tokens), (head, reference.lm_head)):
        close(ours[:-2], theirs.weight)
        close(ours[-2:], theirs.weight.mean(0).expand(2, -1))
