"""`trainer.train`: what is trained, what is frozen, and what a run of each kind leaves behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import memlab
from memlab.errors import ConfigError
from memlab.layers import low_rank
from memlab.training import checkpoints
from memlab.training.build import Parts, build
from tests.training.resuming import assert_same, config, numbers, stopped, train

pytestmark = pytest.mark.xdist_group(__name__)
OVER_INFINI = ["layer_memory=infini", "trainer.precision=64-true"]  # RMT's memory tokens over its layers
MEMORY = [*OVER_INFINI, "trainer.train=memory"]
LORA = [*OVER_INFINI, "trainer.train=lora", "lora.rank=3", "lora.targets=[q,v,ffn]"]
OWN = {"tokens.initial_memory_MD", "backbone.blocks.0.memory.gate_H"}
ADAPTED = {f"backbone.blocks.0.{part}" for part in ("memory.attention.qkv", "ffn.up", "ffn.down")}
ADAPTERS = {f"{part}.parametrizations.weight.0.{one}" for part in ADAPTED for one in ("A_CrD", "B_Pr")}


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained only the memory."""
    run = tmp_path_factory.mktemp("memory") / "run"
    train(config(run, *MEMORY))
    return run


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that also trained adapters."""
    run = tmp_path_factory.mktemp("lora") / "run"
    train(config(run, *LORA))
    return run


def built(run: Path, *words: str) -> Parts:
    return build(config(run, *words))


@pytest.mark.parametrize(
    ("kind", "words", "trained"), [("memory", MEMORY, OWN), ("lora", LORA, OWN | ADAPTERS)]
)
def test_only_what_is_trained_moves(
    kind: str, words: list[str], trained: set[str], request: pytest.FixtureRequest
) -> None:
    """All else is bit for bit as the seed made it, in spite of weight decay, and the optimizer has no state
    of it.
    """
    run: Path = request.getfixturevalue(kind)
    before = dict(built(run, *words).model.named_parameters())
    saved = checkpoints.read(run / "checkpoints" / "last.ckpt")
    after = {name.removeprefix("model."): value for name, value in saved["state_dict"].items()}
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    assert {name for name, parameter in before.items() if parameter.requires_grad} == trained
    (optimizer,) = saved["optimizer_states"]
    sizes = sorted(state["exp_avg"].numel() for state in optimizer["state"].values())
    assert sizes == sorted(before[name].numel() for name in trained)
    found = json.loads((run / "result.json").read_text())
    assert found["parameters/trainable"] == sum(sizes)
    assert found["parameters"] == sum(parameter.numel() for parameter in before.values())


@pytest.mark.parametrize(("kind", "words"), [("memory", MEMORY), ("lora", LORA)])
def test_a_killed_run_continues_bit_for_bit(
    kind: str, words: list[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    stopped(run, *words)
    train(config(run, "resume=auto", *words))
    assert_same(run, request.getfixturevalue(kind))


def test_frozen_weights_get_no_gradient_and_pass_it_on(tmp_path: Path) -> None:
    """To the memory tokens before the first block, through all blocks."""
    module = built(tmp_path, *MEMORY).module
    batch = next(iter(module.stream))
    module.objective.begin(batch)
    module.step_loss(range(len(batch.tokens_BT))).backward()
    found = {name for name, parameter in module.model.named_parameters() if parameter.grad is not None}
    assert found == OWN
    assert module.model.tokens.initial_memory_MD.grad.any()


def test_a_step_in_which_nothing_trained_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of a memory that only later segments read: no gradient, and no error."""
    module = built(tmp_path, *MEMORY).module
    monkeypatch.setattr(module.objective, "loss", lambda rows: torch.tensor(2.0))
    loss = module.step_loss(range(4))
    loss.backward()
    assert float(loss.detach()) == 2.0 and all(parameter.grad is None for parameter in module.parameters())


def test_adapters_with_recomputed_activations_and_steps_in_parts(tmp_path: Path) -> None:
    """The same training, to the rounding of sums."""
    words = [*LORA, "model.dropout=0.0", "trainer.test=false", "trainer.max_steps=9"]
    kinds = ("none", "segment", "block", "none trainer.accumulate=2")
    for kind in kinds:
        train(config(tmp_path / kind, *words, *f"trainer.recompute={kind}".split()))
    for kind in kinds[1:]:
        for one, other in zip(numbers(tmp_path / "none"), numbers(tmp_path / kind), strict=True):
            assert other == pytest.approx(one, rel=1e-6, abs=1e-9), kind


def test_an_opened_run_has_merged_weights(lora: Path, tmp_path: Path) -> None:
    """A model like any other, which reads as the adapted one did."""
    model = memlab.load(lora, device="cpu").model
    plain = {name for name, _ in built(tmp_path, *OVER_INFINI).model.named_parameters()}
    assert {name for name, _ in model.named_parameters()} == plain
    adapted = built(tmp_path, *LORA).model.eval()
    saved = checkpoints.read(lora / "checkpoints" / "best.ckpt")["state_dict"]
    adapted.load_state_dict({name.removeprefix("model."): value for name, value in saved.items()})
    tokens = torch.randint(10, (2, 3, 5))
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, adapted(tokens).logits, rtol=1e-12, atol=1e-12)
    for linear in list(low_rank.adapted(adapted)):
        weight = linear.weight
        assert any(torch.equal(weight, other) for other in model.parameters() if other.shape == weight.shape)


MISTAKES: dict[str, tuple[list[str], str]] = {
    "nothing to train": (
        ["model=transformer", "trainer.train=memory"],
        r"trainer.train=memory: the layer memories and memory tokens of this model added no parameters",
    ),
    "rank": (
        ["trainer.train=lora", "lora.rank=17"],
        r"lora.rank=17: the smaller side of q in layer 1 is 16; .*lora.targets=\['q', 'v'\]",
    ),
    "target": (
        ["trainer.train=lora", "lora.targets=[q,up]"],
        r"lora.targets.*='up': input should be 'q', 'k'",
    ),
    "twice": (["trainer.train=lora", "lora.targets=[q,q]"], r"lora.targets=\['q', 'q'\]: each once"),
    "no adapters": (
        ["lora.rank=4"],
        r"lora.rank=4: there are adapters only with trainer.train=lora; found trainer.train=all",
    ),
    "train": (["trainer.train=gates"], r"trainer.train='gates': input should be 'all', 'memory' or 'lora'"),
}


@pytest.mark.parametrize(("words", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_message_before_anything_is_written(
    words: list[str], message: str, tmp_path: Path
) -> None:
    sizes = [] if any(word.startswith("model=") for word in words) else ["model.memory_tokens=4"]
    base = ["model.width=16", "model.heads=2", "model.layers=1", "task=copy", "tracking=off"]
    with pytest.raises(ConfigError, match=message):
        train(composed(tmp_path / "run", *base, *sizes, *words))
    assert not (tmp_path / "run").exists()


def composed(run_dir: Path, *words: str) -> Any:
    from hydra import compose, initialize_config_dir

    from memlab.config.checks import check
    from memlab.config.paths import config_dir

    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check(compose("train", [*words, f"run_dir={run_dir}"]))
