"""A retrofit begins as the model that it was made from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.models import choices
from tests.building import read_in_pieces
from tests.pretrained import tiny
from tests.pretrained.tiny import tokens


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def causal(memory: int, length: int) -> Tensor:
    """RMT's mask as transformers adds it to scores, [1, 1, L, L]: see `memory_tokens/rmt.py`."""
    total = 2 * memory + length
    look = torch.ones(total, total, dtype=torch.bool).tril()
    look[:memory, :memory] = True
    look[memory + length :] = True
    return torch.zeros(total, total, dtype=torch.float64).masked_fill(~look, -torch.inf)[None, None]


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen3", "mistral"])
def test_infini_with_closed_gates_is_the_model_without_a_memory(name: str, tmp_path: Path) -> None:
    """Exactly in a first segment, whatever the gates are; and in all others while they are closed."""
    reference, tokens_BSN = tiny.save(name, tmp_path), tokens(2, 3, 5)
    expected = torch.stack([reference(part).logits for part in tokens_BSN.unbind(1)], dim=1)
    closed = tiny.ours(tmp_path, "infini", "model.gate_init=-40")
    close(closed(tokens_BSN).logits, expected)
    open_ = tiny.ours(tmp_path, "infini_delta", "model.gate_init=2")(tokens_BSN).logits
    close(open_[:, 0], expected[:, 0])
    assert (open_[:, 1] - expected[:, 1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rmt_is_the_model_with_vectors_before_and_after_each_segment(name: str, tmp_path: Path) -> None:
    """transformers reads the same rows from `inputs_embeds`, at positions 0 .. of its own."""
    reference, tokens_BN = tiny.save(name, tmp_path), tokens(2, 9)
    model = tiny.ours(tmp_path, "rmt", "model.memory_tokens=2")
    memory_BMD = model.tokens.initial_memory_MD.expand(2, -1, -1)
    scale = model.backbone.embed.weight.std()
    assert 0.5 * scale < memory_BMD.std() < 2 * scale  # not 1, which would drown the tokens
    rows = torch.cat([memory_BMD, reference.get_input_embeddings()(tokens_BN), memory_BMD], dim=1)
    found = reference(inputs_embeds=rows, attention_mask=causal(2, 9), output_hidden_states=True)
    output = model.segment(tokens_BN, model.init_state(2))
    close(output.logits, found.logits[:, 2:-2])
    close(output.state.tokens.memory_BMD, found.hidden_states[-1][:, -2:])
    # in pieces
    open, parts = model.begin(model.init_state(2)), []
    for piece in tokens_BN.split([4, 1, 4], dim=1):
        logits, open = model.extend(piece, open)
        parts.append(logits)
    close(torch.cat(parts, 1), found.logits[:, 2:-2])
    close(model.close(open).tokens.memory_BMD, output.state.tokens.memory_BMD)


def test_the_rmt_encoder_is_bert_with_its_own_class_token_and_memory_behind_it(tmp_path: Path) -> None:
    reference, tokens_BN = tiny.save("bert", tmp_path), tokens(2, 9)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"[PAD]": 0, "[CLS]": 5}}}))
    model = tiny.ours(tmp_path, "rmt_encoder", "model.memory_tokens=2")
    words = reference.get_input_embeddings()
    memory_BMD = model.tokens.initial_memory_MD.expand(2, -1, -1)
    rows = torch.cat([words(torch.full((2, 1), 5)), memory_BMD, words(tokens_BN)], dim=1)
    y = reference(inputs_embeds=rows).last_hidden_state
    output = model.segment(tokens_BN, model.init_state(2))
    close(output.state.tokens.memory_BMD, y[:, 1:3])
    close(output.logits[:, 0], y[:, 0] @ words.weight.T)  # our head: the embedding, and a bias of 0


def test_bert_does_not_become_a_decoder(tmp_path: Path) -> None:
    tiny.save("bert", tmp_path)
    with pytest.raises(
        ConfigError, match=r"is a bert, which reads in both directions.*use model=rmt_encoder"
    ):
        tiny.ours(tmp_path, "infini")


def test_the_words_of_a_vocabulary_file_are_known_too(tmp_path: Path) -> None:
    tiny.save("bert", tmp_path)
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n")
    model = tiny.ours(tmp_path, "rmt_encoder")
    assert torch.equal(model.tokens.class_token_D, model.backbone.embed.weight[2])


def test_memory_tokens_without_positions_are_a_choice(tmp_path: Path) -> None:
    tiny.save("gpt2", tmp_path)
    rows = tiny.ours(tmp_path, "rmt", "model.memory_tokens=2")
    token = tiny.ours(tmp_path, "rmt", "model.memory_tokens=2", "backbone.first_position=token")
    state = rows.init_state(1)
    assert rows.segment(tokens(1, 26), state).logits.shape[1] == 26  # 2 + 26 + 2 = 30 positions
    with pytest.raises(ConfigError, match=r"position 30, and model.max_positions=30"):
        rows.segment(tokens(1, 27), state)
    assert token.segment(tokens(1, 30), state).logits.shape[1] == 30
    with pytest.raises(ConfigError, match=r"use model.first_position=token"):
        tiny.ours(tmp_path, "rmt", "layer_memory=full")


def test_every_other_memory_reads_the_first_segment_as_the_model_does(tmp_path: Path) -> None:
    """Where nothing is remembered yet, only the model's own attention is left."""
    reference, tokens_BN = tiny.save("llama", tmp_path), tokens(2, 9)
    expected = reference(tokens_BN).logits
    for words in (["transformer"], ["transformer_xl", "model.positions=rope"], ["infini_delta"]):
        model = tiny.ours(tmp_path, *words)
        close(model.segment(tokens_BN, model.init_state(2)).logits, expected)


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("qwen3")
    tiny.save("qwen3", folder)
    return folder


@pytest.mark.parametrize(
    ("memory", "tokens_"),
    [
        (memory, tokens_)
        for memory in choices.names("layer_memory")
        for tokens_ in ("none", "rmt")
        if (memory, tokens_) != ("associative", "none")  # memory tokens write it
    ],
)
def test_every_memory_keeps_the_contract_around_loaded_weights(
    memory: str, tokens_: str, qwen3: Path
) -> None:
    """In segments, in all at once, in pieces, and as a stream: the same logits and the same state."""
    model = tiny.ours(qwen3, "transformer", f"layer_memory={memory}", f"tokens={tokens_}")
    x_BSN = tokens(2, 3, 5)
    fold = model.recurrent(x_BSN, model.init_state(2))
    logits, state = read_in_pieces(model, x_BSN, [1, 3, 1])
    close(logits, fold.logits.flatten(1, 2))
    streamed = list(model.stream(x_BSN.flatten(1), segment_length=5))
    close(torch.cat([piece.logits for piece in streamed], 1), fold.logits.flatten(1, 2))
    others = [state, streamed[-1].state]
    if model.parallel is not None:
        output = model(x_BSN)
        close(output.logits, fold.logits)
        others.append(output.state)
    for other in others:
        for one, same in zip(other.tensors(), fold.state.tensors(), strict=True):
            close(one.double(), same.double())
    fold.logits.square().sum().backward()
    assert all(p.grad is not None for n, p in model.backbone.named_parameters() if n.endswith("qkv.weight"))
