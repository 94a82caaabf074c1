"""`memlab.export`: transformers opens what it has too, memlab.load the rest; both can be a backbone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hydra import compose, initialize_config_dir

from memlab import api
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.errors import ConfigError, UserError
from memlab.evaluation.exporting import export
from memlab.evaluation.settings import ExportConfig, StoreConfig
from memlab.training.run import train
from tests.pretrained import tiny
from tests.pretrained.tiny import tokens

pytestmark = pytest.mark.xdist_group(__name__)

TASK = ["task=copy", "task.length=4", "task.symbols=5", "task.num_segments=3", "task.validation_size=4"]
TASK += ["task.test_size=4", "task.batch_size=2", "trainer.max_steps=2", "trainer.threads=1", "tracking=off"]
SMALL = ["model.layers=2", "model.width=16", "model.heads=4"]


def trained(place: Path, *words: str) -> Path:
    """A run of two steps; returns its directory."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check(compose("train", [*TASK, "curriculum=off", f"run_dir={place}", *words]))
    train(config)
    return place


def asked(run: Path, to: Path, dtype: Any = None) -> ExportConfig:
    return ExportConfig(run=str(run), to=str(to), dtype=dtype, tracking=StoreConfig(uri="sqlite:///none.db"))


FULL = ["model=transformer", "model.context=full"]


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([*FULL, *SMALL, "backbone=llama"], "LlamaForCausalLM"),
        ([*FULL, *SMALL, "backbone=llama", "model.qk_norm=true"], "Qwen3ForCausalLM"),
        ([*FULL, *SMALL, "backbone=llama", "model.biases=[qkv]"], "Qwen2ForCausalLM"),
        ([*FULL, *SMALL, "backbone=gpt2"], "GPT2LMHeadModel"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_transformers_opens_a_model_of_its_own(words: list[str], kind: str, tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *words)
    said = export(asked(run, tmp_path / "exported", "float64"))
    assert "transformers opens it" in said
    opened, model = (
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype=torch.float64),
        api.load(run, device="cpu").model.double(),
    )
    assert type(opened).__name__ == kind
    x = torch.randint(5, (2, 12))
    torch.testing.assert_close(
        model(x[:, None]).logits[:, 0], tiny.exact(opened.eval())(x).logits, rtol=1e-10, atol=1e-10
    )
    again = tiny.ours(tmp_path / "exported", "transformer", "model.context=full")  # and back into our blocks
    torch.testing.assert_close(again(x[:, None]).logits, model(x[:, None]).logits, rtol=1e-10, atol=1e-10)


def test_a_retrofit_is_exported_trained_on_and_opened(tmp_path: Path) -> None:
    """A llama, Infini put in and trained; exported; opened by memlab.load; and a base of a run with other
    segments, gates included.
    """
    tiny.reference("llama").float().save_pretrained(tmp_path / "llama")
    (tmp_path / "llama" / "tokenizer.json").write_text("{}")
    run = trained(tmp_path / "run", "model=infini", "backbone=pretrained", f"model.path={tmp_path / 'llama'}")
    said = export(asked(run, tmp_path / "exported"))
    assert "memlab.load opens it; transformers has no such model" in said
    assert json.loads((tmp_path / "exported" / "config.json").read_text())["model_type"] == "memlab"
    assert (tmp_path / "exported" / "tokenizer.json").read_text() == "{}"
    first, second = api.load(run, device="cpu"), api.load(tmp_path / "exported", device="cpu")
    x_BSN = tokens(2, 3, 4)
    assert torch.equal(second.model(x_BSN).logits, first.model(x_BSN).logits)
    assert second.step == first.step == 2 and second.result is None
    gates = {n: p for n, p in first.model.named_parameters() if n.endswith("gate_H")}
    assert len(gates) == 3 and all(p.abs().max() > 0 for p in gates.values())
    for base in (run, run / "checkpoints" / "best.ckpt", tmp_path / "exported"):
        continued = tiny.ours(base, "infini")
        for name, gate in continued.named_parameters():
            if name in gates:
                assert torch.equal(gate, gates[name].double())
        torch.testing.assert_close(
            continued(x_BSN).logits, first.model.double()(x_BSN).logits, rtol=1e-10, atol=1e-10
        )
        first.model.float()


def test_a_base_of_memlab_gets_another_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = trained(tmp_path / "run", "model=infini", *SMALL)
    base = api.load(run, device="cpu").model.double()
    rmt = tiny.ours(run, "rmt", "model.memory_tokens=2")
    assert "what its own memory had learned has no place in this model (backbone.blocks.0.memory.gate_H," in (
        capsys.readouterr().err
    )
    assert torch.equal(rmt.backbone.blocks[1].ffn.up.weight, base.backbone.blocks[1].ffn.up.weight)
    assert rmt.backbone.width == 16 and len(rmt.backbone.blocks) == 2
    with pytest.raises(ConfigError, match=r"model.positions=transformer_xl: .* have positions=rope"):
        tiny.ours(run, "transformer_xl")


def test_mistakes(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", *FULL, *SMALL)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(UserError, match="full is not empty; give a new directory"):
        export(asked(run, tmp_path / "full"))
    said = export(asked(run, tmp_path / "exported"))  # layer normalisation and rotary positions
    assert "transformers has no such model" in said
    (tmp_path / "exported" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(UserError, match="exported is damaged"):
        api.load(tmp_path / "exported")
    with pytest.raises(UserError, match="there is no such directory or file"):
        export(asked(tmp_path / "nowhere", tmp_path / "new"))
