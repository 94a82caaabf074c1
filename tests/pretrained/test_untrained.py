"""`memlab.evaluate` on a pretrained model that no run has trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from memlab import api
from memlab.config.composing import compose_job, composing
from memlab.config.paths import config_dir
from memlab.config.untrained import Untrained, separate
from memlab.errors import ConfigError, UserError
from memlab.evaluation.settings import EvaluateConfig, check_evaluate, check_generate
from memlab.reports.evaluation.command import evaluate
from memlab.tasks.copy import Copy
from tests.pretrained import tiny

TASK = ["task=copy", "task.length=4", "task.symbols=5", "task.num_segments=3", "task.test_size=12"]
OWN = ["threads=1", "accelerator=cpu", "lengths=[3,6]"]
_MORE: list[tuple[str, ...]] = [(), (), ("seed=1",), ("model.gate_init=1",)]


def asked(words: list[str]) -> EvaluateConfig:
    """As the command would."""
    own, untrained = separate("evaluate", words)
    config = untrained.config()
    with composing():
        return check_evaluate(compose_job("evaluate", own), config)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("llama")
    return folder, tiny.save("llama", folder)


def test_its_figures_are_those_of_transformers(llama: tuple[Path, Any], tmp_path: Path) -> None:
    """Full context, greedy, sample by sample; then nothing is computed again."""
    folder, reference = llama
    words = [f"backbone.path={folder}", "model=transformer", "model.context=full", "backbone=pretrained"]
    words += [*TASK, *OWN, f"run_dir={tmp_path / 'run'}", "backbone.dtype=float64"]
    found = evaluate(asked(words))
    assert found["trained_segments"] is None
    task = Copy(**{k: v for k, v in asked(words).untrained.task.items() if k not in ("_target_", "name")})  # type: ignore[union-attr]
    for entry in found["lengths"]:
        batch = task.at(entry["segments"]).batch("test", 0, 12)
        right = total = 0
        for tokens_T, targets_T, answer_T in zip(
            torch.from_numpy(batch.tokens_BT), batch.targets_BT, batch.answer_BT, strict=True
        ):
            read = tokens_T.clone()
            for t in answer_T.nonzero()[0].tolist():
                with torch.no_grad():
                    predicted = int(reference(read[None, : t + 1]).logits[0, -1].argmax())
                right, total = right + (predicted == targets_T[t]), total + 1
                if t + 1 < len(read):
                    read[t + 1] = predicted
        assert entry["accuracy"] == pytest.approx(right / total) and entry["checkpoint"] == "pretrained"
    again = evaluate(asked(words))
    assert [e["finished"] for e in again["lengths"]] == [e["finished"] for e in found["lengths"]]
    saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert saved["model"]["layers"] == 3 and saved["model"]["identity"].startswith("sha256:")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == again
    with pytest.raises(UserError, match=r"holds another run"):
        evaluate(asked([*words, "seed=3"]))


def test_the_default_directory_follows_from_model_and_task(llama: tuple[Path, Any]) -> None:
    words = ["backbone=pretrained", f"backbone.path={llama[0]}", "model=infini", *TASK]
    places = [
        Untrained((*words, *more), None).config() for more in ((), (), ("seed=1",), ("model.gate_init=1",))
    ]
    names = [config.run_dir for config in places if config is not None]
    assert names[0] == names[1] and len(set(names)) == 3
    assert names[0].startswith("runs/copy/infini/pretrained-")


def test_it_writes_what_transformers_writes(llama: tuple[Path, Any], tmp_path: Path) -> None:
    """Greedy, with the model's own tokenizer, whose token of a new document comes first."""
    folder, reference = llama
    words = ["<|endoftext|>", *(f"w{i}" for i in range(1, tiny.VOCABULARY))]
    tokenizer = tokenizers.Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[1]))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.add_special_tokens(["<|endoftext|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    line = ["backbone=pretrained", f"backbone.path={folder}", "backbone.dtype=float64", "prompt=w3 w7"]
    own, untrained = separate("generate", [*line, "temperature=0", "tokens=6"])
    ConfigStore.instance().store("generate", OmegaConf.load(Path(config_dir(), "generate.yaml")))
    with composing(groups=False):
        config = check_generate(compose_job("generate", own), untrained.writing().config())
    assert config.untrained is not None and config.untrained.model["context"] == "full"
    run = api.untrained(config.untrained, torch.device("cpu"))
    written = list(run.write(config.prompt, config.tokens, temperature=config.temperature, top_k=None))
    read = torch.tensor([[0, 3, 7]])
    theirs = reference.generate(read, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=1)
    assert "".join(written).split() == [words[i] for i in theirs[0, 3:]]
    assert not Path(config.untrained.run_dir).exists()  # nothing was measured


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.max_steps=3"], "trainer.max_steps=3: nothing is trained here"),
        (["optim=text"], "optim=text: nothing is trained here"),
        (["--multirun", "seed=1,2"], "start one after another"),
        (
            ["model.layers=2"],
            "model.layers=2: with backbone=pretrained, the weights of backbone.path settle it",
        ),
        (["model=transformer_xl"], r"model.positions=transformer_xl: the weights .* have positions=rope"),
        (["model.path=elsewhere"], "model.path is given twice"),
        (["backbone.pahts=1"], "unknown key 'model.pahts'. Did you mean 'path'"),
    ],
)
def test_mistakes(llama: tuple[Path, Any], words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        asked(["backbone=pretrained", f"backbone.path={llama[0]}", *TASK, *OWN, *words])


def test_a_backbone_without_weights_needs_a_run() -> None:
    with pytest.raises(
        ConfigError, match=r"backbone=llama has no weights: give run=DIR, or backbone=pretrained"
    ):
        asked(["backbone=llama", *TASK])
    with pytest.raises(ConfigError, match=r"run is missing"):
        asked(OWN)
