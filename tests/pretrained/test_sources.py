"""Where weights come from: one message for what is wrong with each place, and .gguf files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from memlab import ram
from memlab.config.compose_model import model_values
from memlab.errors import ConfigError
from memlab.models.compose import compose
from memlab.models.pretrained import describing
from memlab.models.pretrained.describing import describe, identity_of
from memlab.models.pretrained.loading import check_room, load
from tests.pretrained import tiny
from tests.pretrained.tiny import tokens


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole directory, in shards; tests damage copies of it."""
    folder = tmp_path_factory.mktemp("whole")
    tiny.save("llama", folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def configured(folder: Path, **changes: Any) -> None:
    """Change its config.json."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def first_shard(folder: Path) -> Path:
    return sorted(folder.glob("*.safetensors"))[0]


def cut(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(file.read_bytes()[:-7])


def cut_header(folder: Path) -> None:
    file = first_shard(folder)
    file.write_bytes(file.read_bytes()[:30])


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (
        lambda f: (f / "config.json").unlink(),
        "config.json is missing; a directory of a pretrained",
    ),
    "empty config": (lambda f: (f / "config.json").write_text(""), "config.json is empty"),
    "half a config": (lambda f: (f / "config.json").write_text('{"model_'), "config.json is damaged"),
    "missing shard": (lambda f: first_shard(f).unlink(), r"1 of \d+ shards are missing \(model-00001-of"),
    "half a shard": (cut, r"model-00001-of-\d+.safetensors has [\d,]+ bytes of [\d,]+; download it again"),
    "half a header": (cut_header, "is no safetensors file, or half of one"),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), "neither model.safetensors nor"),
    "other model": (
        lambda f: configured(f, model_type="mamba"),
        "the type 'mamba', which memlab does not read. It reads: bert, gpt2, llama, mistral, qwen2, qwen3",
    ),
    "activation": (
        lambda f: configured(f, hidden_act="relu"),
        "hidden_act='relu', which memlab's blocks do not",
    ),
    "yarn": (
        lambda f: configured(f, rope_parameters={"rope_type": "yarn", "factor": 4.0}),
        "rope_scaling of the type 'yarn', which .* do not have; they have none, linear and llama3",
    ),
    "no width": (lambda f: configured(f, hidden_size=None), "has hidden_size=None; a positive whole number"),
    "odd heads": (lambda f: configured(f, head_dim=True), "has head_dim=True; a positive whole number"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_unknown_directory_is_reported_when_it_is_described(damage: str, copy: Path) -> None:
    spoil, said = DAMAGES[damage]
    spoil(copy)
    with pytest.raises(ConfigError, match=said) as caught:
        model_values("transformer", ["backbone=pretrained", f"backbone.path={copy}"])
    assert "\n" not in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_hidden_layers": 2}, r"these tensors have no place in our blocks: layers.2.*and \d+ more"),
        ({"num_hidden_layers": 4}, r"these tensors are missing: layers.3.input_layernorm.weight"),
        (
            {"intermediate_size": 12},
            r"expected \[12, 12\] rows in these tensors: layers.0.mlp.gate_proj.weight",
        ),
        ({"hidden_size": 20}, r"embed.weight has the shape \[23, 18\], expected \[23, 20\]"),
        ({"tie_word_embeddings": False}, r"these tensors are missing: lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_their_description(changes: dict[str, int], said: str, copy: Path) -> None:
    configured(copy, **changes)
    with pytest.raises(ConfigError, match=f"read as llama: {said}"):
        tiny.ours(copy)


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("nowhere", "there is no such directory or file, and a hub id is OWNER/NAME"),
        ("config.json", "a file is .gguf or .ckpt; of safetensors, give the directory"),
        ("x.gguf", "is no .gguf file"),
        ("x.ckpt", "x.ckpt is damaged or no checkpoint"),
        ("", "config.json is missing"),
    ],
)
def test_other_places(path: str, said: str, tmp_path: Path) -> None:
    for name in ("config.json", "x.gguf", "x.ckpt"):
        if path:
            (tmp_path / name).write_text("{}")
    with pytest.raises(ConfigError, match=said):
        describe(str(tmp_path / path))


def test_a_hub_id_without_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"owner/model: there is no such directory .* neither in the hub's cache"
    ):
        describe("owner/model")


def test_a_revision_is_only_for_the_hub(saved: Path) -> None:
    with pytest.raises(ConfigError, match=r"backbone.revision=main: only models of the hub have revisions"):
        describe(str(saved), "main")


def test_other_weights_than_those_of_the_configuration_are_refused(copy: Path) -> None:
    values = model_values("transformer", ["backbone=pretrained", f"backbone.path={copy}"])
    known = identity_of(values)
    assert known is not None and known.path == str(copy) and known.family == "llama"
    assert model_values("transformer", ["backbone=pretrained", f"backbone.path={copy}"]) == values
    file = first_shard(copy)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ConfigError, match=f"has other weights than .* expected {known.identity}"):
        load(compose(values, 2), values)


def test_weights_that_do_not_fit_into_memory_are_refused_before_they_are_read(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = model_values("transformer", ["backbone=pretrained", f"backbone.path={saved}"])
    large = values | {"width": 4096, "layers": 32, "ffn_width": 14336, "vocabulary": 128_256}
    large |= {"heads": 32, "kv_heads": 8, "head_width": 128, "tied_head": False}
    monkeypatch.setattr(ram, "available", lambda: 16 << 30)
    with pytest.raises(
        ConfigError, match=r"loading 8,030 million parameters needs at least 29.9 GiB of memory"
    ):
        check_room(large)
    with pytest.raises(
        ConfigError, match=r"training 8,030 million .* needs at least 119.7 GiB .* only the memory"
    ):
        check_room(large, copies=4)
    check_room(values, copies=4)


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2", "qwen3", "mistral", "gpt2", "bert"])
def test_the_number_of_parameters_is_known_before_loading(name: str, tmp_path: Path) -> None:
    """But for normalisations and biases, which do not matter for an estimate."""
    tiny.save(name, tmp_path)
    values = model_values(
        "rmt_encoder" if name == "bert" else "transformer",
        ["backbone=pretrained", f"backbone.path={tmp_path}", "tokens=none"],
    )
    model = compose(values, 2)
    large = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert describing.parameters(values) == large


def gguf_file(reference: Any, file: Path, kind: gguf.GGMLQuantizationType) -> None:
    """Write a Llama model as llama.cpp's converter does: other names, rotated pairs next to each other."""
    config, tensors = reference.config, reference.state_dict()
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])  # an array to be passed over
    writer.add_token_scores([0.5] * config.vocab_size)
    names = {"embed_tokens": "token_embd", "norm": "output_norm", "input_layernorm": "attn_norm"}
    names |= {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    names |= {"post_attention_layernorm": "ffn_norm"}
    for name, tensor in tensors.items():
        parts = name.split(".")
        if parts[0] == "lm_head":
            continue  # tied
        own = names[parts[-2]]
        value = tensor.float()
        if own in ("attn_q", "attn_k"):
            heads = config.num_attention_heads if own == "attn_q" else config.num_key_value_heads
            value = value.reshape(heads, 2, -1, value.shape[1]).transpose(1, 2).reshape(value.shape)
        whole = f"blk.{parts[2]}.{own}.weight" if parts[1] == "layers" else f"{own}.weight"
        array = value.contiguous().numpy()
        if array.ndim == 2 and kind != gguf.GGMLQuantizationType.F32:
            writer.add_tensor(whole, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(whole, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_file_is_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    reference, file = tiny.exact(tiny.reference("llama")), tmp_path / "model.gguf"
    gguf_file(reference, file, gguf.GGMLQuantizationType.F32)
    values = model_values("transformer", ["backbone=pretrained", f"backbone.path={file}"])
    assert (values["norm_eps"], values["rope_base"], values["tied_head"]) == (1e-5, 10_000.0, True)
    tokens_BN = tokens(2, 9)
    actual, expected = tiny.ours(file)(tokens_BN[:, None]).logits[:, 0], reference(tokens_BN).logits
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)  # stored in float32


def test_a_quantised_gguf_file_is_dequantised(tmp_path: Path) -> None:
    """Rows of 32 in 8 bits: the error of each weight is at most half a step of its block."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "head_dim": 8}
    kind, options = tiny.CASES["llama"]
    reference: Any = tiny.made(kind, {**options, **sizes, "num_key_value_heads": 2})
    file = tmp_path / "model.gguf"
    gguf_file(reference, file, gguf.GGMLQuantizationType.Q8_0)
    model = tiny.ours(file)
    weight = reference.model.layers[1].mlp.down_proj.weight

    def steps(w: Tensor) -> Tensor:
        return w.unflatten(-1, (-1, 32)).abs().amax(-1).repeat_interleave(32, -1) / 127

    error = (model.backbone.blocks[1].ffn.down.weight - weight).abs()
    assert error.max() > 0 and (error <= 0.51 * steps(weight) + 1e-3 * weight.abs()).all()


def test_mistakes_with_gguf_files(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    gguf_file(tiny.reference("llama"), file, gguf.GGMLQuantizationType.F32)
    whole = file.read_bytes()
    file.write_bytes(whole[:-40])  # with some padding
    with pytest.raises(ConfigError, match=r"has [\d,]+ bytes of [\d,]+; download it again"):
        describe(str(file))
    file.write_bytes(whole[:100])
    with pytest.raises(ConfigError, match=r"is no .gguf file, or the beginning of one"):
        describe(str(file))
    file.write_bytes(whole.replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0gemma"))
    with pytest.raises(
        ConfigError, match=r"the architecture 'gemma'; memlab reads llama, qwen2, qwen3 from .gguf"
    ):
        describe(str(file))


def test_numbers_of_16_bits_are_read(tmp_path: Path) -> None:
    reference = tiny.reference("llama").bfloat16()
    reference.save_pretrained(tmp_path)
    weight = tiny.ours(tmp_path).backbone.embed.weight
    assert torch.equal(weight, reference.model.embed_tokens.weight.double())
    values = model_values(
        "infini", ["backbone=pretrained", f"backbone.path={tmp_path}", "backbone.dtype=bfloat16"]
    )
    model = compose(values, 2)
    load(model, values)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    output = model(tokens(1, 2, 5))
    assert output.logits.dtype == torch.bfloat16
    assert output.state.layers[0].memory_BGKV.dtype == torch.float32  # sums stay accurate
    assert np.isfinite(output.logits.float().detach().numpy()).all()
