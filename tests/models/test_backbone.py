"""The blocks that a description makes, against a Transformer written here from the families' definitions.

It takes nothing from memlab but the weights, by their names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from memlab.config.paths import config_dir
from memlab.errors import ConfigError
from memlab.models.base import Model
from memlab.models.compose import compose
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive


@dataclass(frozen=True)
class Definition:
    """What a family's papers and code say of its blocks."""

    norm: str = "layer"
    eps: float = 1e-5
    post: bool = False  # norm(x + f(x)), and the embedding is normalised too
    feed_forward: str = "gelu"
    positions: str = "rope"
    base: float = 10_000.0


LLAMA = Definition(norm="rms", feed_forward="swiglu")  # arXiv 2302.13971, section 2.2
GPT2 = Definition(feed_forward="gelu_tanh", positions="learned")
BERT = Definition(eps=1e-12, post=True, positions="learned")  # arXiv 1810.04805, and its code
FAMILIES = {"small": Definition(), "llama": LLAMA, "gpt2": GPT2, "bert": BERT}
# Which of its linear layers have a bias, how many key-value heads it has, whether the head is the embedding.
SHAPES: dict[str, tuple[set[str], int, bool]] = {
    "small": ({"qkv", "ffn", "head"}, 4, False),
    "llama": (set(), 2, False),
    "gpt2": ({"qkv", "out", "ffn"}, 4, True),
    "bert": ({"qkv", "out", "ffn", "head"}, 4, True),
}


class Naive:
    """One document read by a family's definition."""

    def __init__(self, model: Model, definition: Definition) -> None:
        self.weights = dict(model.named_parameters(remove_duplicate=False))
        self.heads, self.width = model.backbone.heads, model.backbone.head_width
        self.layers, self.definition = len(model.backbone.blocks), definition

    def read(self, x_TD: Tensor, may_look_TT: Tensor, positions_T: Tensor) -> Tensor:
        """Rows through all blocks."""
        post = self.definition.post
        x = self.normalise("embed_norm", x_TD) if post else x_TD
        for layer in range(self.layers):
            block = f"blocks.{layer}"
            if post:
                x = self.normalise(
                    f"{block}.memory_norm", x + self.attend(block, x, may_look_TT, positions_T)
                )
                x = self.normalise(f"{block}.ffn_norm", x + self.feed_forward(block, x))
            else:
                looked_at = self.normalise(f"{block}.memory.norm", x)
                x = x + self.attend(block, looked_at, may_look_TT, positions_T)
                x = x + self.feed_forward(block, self.normalise(f"{block}.ffn_norm", x))
        return x if post else self.normalise("norm", x)

    def logits(self, tokens_N: Tensor) -> Tensor:
        n = len(tokens_N)
        x_ND = self.embed(tokens_N)
        causal = torch.ones(n, n).tril() > 0
        return self.linear("head", self.read(x_ND, causal, torch.arange(n)))

    def embed(self, tokens_N: Tensor) -> Tensor:
        x_ND = self.weights["backbone.embed.weight"][tokens_N]
        if self.definition.positions == "learned":
            x_ND = x_ND + self.weights["backbone.learned_positions.weight"][: len(tokens_N)]
        return x_ND

    def linear(self, name: str, x: Tensor) -> Tensor:
        y, bias = x @ self.weights[f"backbone.{name}.weight"].T, self.weights.get(f"backbone.{name}.bias")
        return y if bias is None else y + bias

    def normalise(self, name: str, x: Tensor) -> Tensor:
        gain, eps = self.weights[f"backbone.{name}.weight"], self.definition.eps
        if self.definition.norm == "rms":
            assert f"backbone.{name}.bias" not in self.weights
            return x / ((x * x).mean(-1, keepdim=True) + eps) ** 0.5 * gain
        centred = x - x.mean(-1, keepdim=True)
        variance = (centred * centred).mean(-1, keepdim=True)
        return centred / (variance + eps) ** 0.5 * gain + self.weights[f"backbone.{name}.bias"]

    def attend(self, block: str, x_TD: Tensor, may_look_TT: Tensor, positions_T: Tensor) -> Tensor:
        projected = self.linear(f"{block}.memory.attention.qkv", x_TD)
        parts = projected.view(len(x_TD), -1, self.width).transpose(0, 1)  # [H + 2 G, T, K]
        shared = self.heads * 2 // (len(parts) - self.heads)
        queries = parts[: self.heads]
        keys, values = parts[self.heads :].chunk(2)
        outputs = []
        for h in range(self.heads):
            q, k = queries[h], keys[h // shared]
            if self.definition.positions == "rope":
                q, k = self.rotate(q, positions_T), self.rotate(k, positions_T)
            weight = torch.where(may_look_TT, (q @ k.T / math.sqrt(self.width)).exp(), 0.0)
            outputs.append(weight / weight.sum(-1, keepdim=True) @ values[h // shared])
        return self.linear(f"{block}.memory.attention.out", torch.cat(outputs, dim=-1))

    def rotate(self, x_TK: Tensor, positions_T: Tensor) -> Tensor:
        """`x cos + rotate_half(x) sin` of Llama's code in transformers."""
        half = self.width // 2
        frequency = self.definition.base ** (
            -torch.arange(0, self.width, 2, dtype=torch.float64) / self.width
        )
        angle = (positions_T[:, None] * frequency).repeat(1, 2)
        rotated_half = torch.cat([-x_TK[:, half:], x_TK[:, :half]], dim=-1)
        return x_TK * angle.cos() + rotated_half * angle.sin()

    def feed_forward(self, block: str, x: Tensor) -> Tensor:
        up = self.linear(f"{block}.ffn.up", x)
        if self.definition.feed_forward == "swiglu":
            gate, value = up.chunk(2, dim=-1)
            hidden = gate * torch.sigmoid(gate) * value
        elif self.definition.feed_forward == "gelu_tanh":  # gelu_new
            hidden = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
        else:
            hidden = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
        return self.linear(f"{block}.ffn.down", hidden)


def family(name: str) -> dict[str, Any]:
    """The keys of a file of configs/backbone, with those of the files that it begins with."""
    file = Path(config_dir(), "backbone", f"{name}.yaml")
    values: Any = OmegaConf.to_container(OmegaConf.load(file))
    before = [family(other) for other in values.pop("defaults", [])]
    return {key: value for part in (*before, values) for key, value in part.items()}


def build(values: dict[str, Any]) -> Model:
    torch.manual_seed(0)
    whole = {"layer_memory": "attention", "tokens": "none"} | values
    return building.disturb(compose(whole, VOCABULARY))


def assert_reads_as_defined(model: Model, definition: Definition, length: int = 5) -> None:
    """Logits of segments and all gradients."""
    tokens_BSN = tokens(2, 2, length)
    output, reference = model(tokens_BSN), Naive(model, definition)
    expected = torch.stack([torch.stack([reference.logits(t) for t in document]) for document in tokens_BSN])
    naive.assert_same_values_and_gradients(model, [output.logits], [expected])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_as_defined(name: str) -> None:
    """The file as it is, at fewer layers and another width."""
    values = family(name) | {"layers": 2, "width": 16, "ffn_width": 10}
    model, (biases, groups, tied) = build(values), SHAPES[name]
    block = model.backbone.blocks[0]
    linears = {"qkv": block.memory.attention.qkv, "out": block.memory.attention.out, "ffn": block.ffn.up}
    linears |= {"head": model.backbone.head}
    assert {of for of, linear in linears.items() if linear.bias is not None} == biases
    assert model.backbone.kv_heads == groups
    assert (model.backbone.head.weight is model.backbone.embed.weight) == tied
    assert_reads_as_defined(model, FAMILIES[name])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_familys_file_builds_as_it_is(name: str) -> None:
    model = compose(family(name) | {"layer_memory": "attention", "tokens": "none"}, VOCABULARY)
    assert model(tokens(1, 2, 5)).logits.isfinite().all()
    assert model.backbone.width == 64 and len(model.backbone.blocks) == 3


def test_blocks_of_bert_look_in_both_directions_under_an_encoder() -> None:
    """[class token | memory | segment], where memory tokens have no position."""
    values = family("bert") | {"layers": 2, "width": 16, "tokens": "rmt_encoder", "memory_tokens": 2}
    model, tokens_BN = build(values), tokens(2, 4)
    output, reference = model.segment(tokens_BN, model.init_state(2)), Naive(model, BERT)
    answers, memories = [], []
    for tokens_N in tokens_BN:
        first = [model.tokens.class_token_D[None], model.tokens.initial_memory_MD]
        rows = torch.cat([*first, reference.embed(tokens_N)])
        y = reference.read(rows, torch.ones(7, 7) > 0, torch.arange(-3, 4))
        answers.append(reference.linear("head", y[:1]))
        memories.append(y[1:3])
    expected = [torch.stack(answers), torch.stack(memories)]
    actual = [output.logits, output.state.tokens.memory_BMD]
    # the table's other rows get a gradient of 0, in both
    naive.assert_same_values_and_gradients(model, actual, expected)


@pytest.mark.parametrize(
    ("changed", "definition"),
    [
        ({"norm": "rms", "norm_eps": 0.1}, {"norm": "rms", "eps": 0.1}),
        ({"norm_position": "post"}, {"post": True}),
        ({"norm_position": "post", "norm": "rms", "biases": []}, {"post": True, "norm": "rms"}),
        ({"feed_forward": "swiglu", "ffn_width": 5}, {"feed_forward": "swiglu"}),
        ({"feed_forward": "gelu_tanh", "ffn_multiple": 1}, {"feed_forward": "gelu_tanh"}),
        ({"biases": ["out"]}, {}),
        ({"biases": ["ffn"]}, {}),
        ({"biases": ["qkv", "head"]}, {}),
        ({"head_width": 6}, {}),  # wider than width / heads, and narrower
        ({"head_width": 2, "heads": 3, "kv_heads": 1, "biases": ["qkv", "out"]}, {}),
        ({"heads": 4, "kv_heads": 2, "positions": "none"}, {"positions": "none"}),
        (
            {"positions": "learned", "max_positions": 5, "norm_position": "post"},
            {"positions": "learned", "post": True},
        ),
        ({"rope_base": 50.0}, {"base": 50.0}),
        ({"tied_head": True}, {}),
        ({"tied_head": True, "biases": []}, {}),
        ({"layers": 1, "width": 6, "heads": 1}, {}),
        ({"layers": 3, "width": 12, "heads": 3}, {}),
    ],
    ids=str,
)
def test_each_value_of_a_description_means_what_it_says(
    changed: dict[str, Any], definition: dict[str, Any]
) -> None:
    assert_reads_as_defined(build(building.SIZES | changed), replace(Definition(), **definition))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"width": 9}, r"model\.width=9 .*model\.heads=2"),
        ({"width": 6}, r"model\.width=6 .*model\.heads=2 .*even"),
        ({"head_width": 3}, r"model\.head_width=3.*even"),
        ({"heads": 4, "kv_heads": 3}, r"model\.heads=4 .*model\.kv_heads=3"),
        ({"untie": True}, r"model\.untie=true .*model\.positions=rope"),
        ({"clamp_len": 3, "positions": "none"}, r"model\.clamp_len=3 .*model\.positions=none"),
        ({"positions": "learned"}, r"model\.positions=learned needs model\.max_positions"),
        ({"max_positions": 3}, r"model\.positions=rope has no table.*model\.max_positions=3"),
        ({"layer_memory": "no_such"}, r"model\.layer_memory=no_such.*infini"),
        ({"layer_memory": "infinni"}, r"Did you mean 'infini'"),
        ({"layer_memory": ["infini", "attention", "full"]}, r"3 entries.*model\.layers=2"),
        ({"layer_memory": []}, r"0 entries"),
        ({"tokens": "rtm"}, r"model\.tokens=rtm.*Did you mean 'rmt'"),
        ({"layer_memory": "memorizing", "memory_layer": 3}, r"model\.memory_layer=3.*model\.layers=2"),
        (
            {"layer_memory": ["transformer_xl", "memorizing"], "memory_layer": 1},
            r"model\.memory_layer=1: layer 1 is TransformerXL.*layers with Memorizing: 2$",
        ),
        ({"layer_memory": "transformer_xl", "same_length": True, "mem_len": 0}, r"model\.same_length=true"),
    ],
    ids=str,
)
def test_values_that_do_not_go_together_are_one_clear_error(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(building.SIZES | changed)


def test_dropout_is_on_both_sub_layers_outputs_while_training_alone() -> None:
    model = build(building.SIZES | {"dropout": 0.5, "layers": 1})
    zeroed: list[float] = []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda _, __, y: zeroed.append(float((y == 0).double().mean())))
    model.train()(tokens(4, 2, 30))
    assert len(zeroed) == 2 and all(0.4 < share < 0.6 for share in zeroed)
    zeroed.clear()
    model.eval()(tokens(4, 2, 30))
    assert zeroed == [0.0, 0.0]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layer_memory", ["transformer_xl", "infini", "memorizing", "full"])
@pytest.mark.parametrize("around", ["none", "rmt"])
def test_every_memory_works_in_every_family(name: str, layer_memory: str, around: str) -> None:
    """The parallel form is the fold over segments, and pieces are the segment."""
    options = {"layers": 2, "width": 16, "mem_len": 3, "memory_size": 5, "memory_tokens": 2}
    values = family(name) | options | {"layer_memory": layer_memory, "tokens": around}
    model, tokens_BSN = build(values), tokens(2, 3, 4)
    whole = model.recurrent(tokens_BSN, model.init_state(2))
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, [1, 3])  # type: ignore[arg-type]
    found = [(logits_BTV.unflatten(1, (3, 4)), state)]
    if model.parallel is not None:
        output = model.parallel(tokens_BSN, model.init_state(2))
        found.append((output.logits, output.state))
    assert len(found) == (2 if around == "none" else 1)
    for logits, after in found:
        torch.testing.assert_close(logits, whole.logits, rtol=1e-9, atol=1e-10)
        for a, e in zip(after.tensors(), whole.state.tensors(), strict=True):
            torch.testing.assert_close(a, e, rtol=1e-9, atol=1e-10)
