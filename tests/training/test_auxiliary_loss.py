"""Losses of layer memories on their way to the training: each segment's counts once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from memlab.config import composing
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.models.base import Model
from memlab.training import truncation
from memlab.training.build import build
from memlab.training.module import TrainingModule
from tests import building
from tests.training import resuming
from tests.training.own_loss import Penalised

OWN = "tests.training.own_loss.Penalised"
LENGTHS = (4, 4, 4, 2)
SMALL = ["model.layers=2", "model.width=8", "model.heads=2", "trainer.precision=64-true"]
COPY = ["task=copy", "task.length=4", "task.num_segments=3", "task.batch_size=4"]


def expected(model: Model, tokens_BT: Tensor, lengths: tuple[int, ...] = LENGTHS) -> Tensor:
    """[B, S]: mean squares of the memories after each segment, summed over layers, by their definition."""
    state, losses = model.init_state(len(tokens_BT)), []
    for tokens_BN in tokens_BT.split(list(lengths), 1):
        state = model.segment(tokens_BN, state).state
        losses.append(sum(0.5 * layer.memory_BGKV.flatten(1).square().mean(1) for layer in state.layers))
    return torch.stack(losses, dim=1)  # type: ignore[arg-type]


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-10, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("form", ["recurrent", "parallel"])
@pytest.mark.parametrize("recompute", [False, True])
def test_it_is_the_sum_over_layers(form: str, recompute: bool) -> None:
    model, tokens_BSN = building.build(OWN), building.tokens(3, 4, 5)
    model.backbone.recompute = recompute
    auxiliary = getattr(model, form)(tokens_BSN, model.init_state(3)).auxiliary
    right = expected(model, tokens_BSN.flatten(1), (5,) * 4)
    torch.testing.assert_close(auxiliary, right)
    weights = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
    assert_same(gradients(model, (auxiliary * weights).sum()), gradients(model, (right * weights).sum()))


@pytest.mark.parametrize("memory", ["off", "shuffled"])
def test_controls(memory: str) -> None:
    """Each segment is read with the initial state, or the loss is of the document's own memory."""
    model, tokens_BSN = building.build(OWN, memory=memory), building.tokens(3, 2, 5)
    auxiliary = model(tokens_BSN).auxiliary
    if memory == "off":
        right = expected(building.build(OWN), tokens_BSN.flatten(0, 1), (5,)).view(3, 2)
    else:
        right = expected(model, tokens_BSN.flatten(1), (5, 5))
    torch.testing.assert_close(auxiliary, right)


def test_there_is_none_without_gradient_or_without_such_a_memory() -> None:
    tokens_BSN = building.tokens(2, 3, 4)
    with torch.no_grad():
        assert building.build(OWN)(tokens_BSN).auxiliary is None
    model = building.build("infini")
    assert model(tokens_BSN).auxiliary is None and not model.has_auxiliary_loss
    assert building.build(["infini", OWN]).has_auxiliary_loss


def test_a_memory_that_forgets_its_loss_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, means over segments would silently be means over some of them."""
    monkeypatch.setattr(Penalised, "segment", Penalised.__base__.segment)  # type: ignore[union-attr]
    model = building.build(OWN)
    with pytest.raises(RuntimeError, match="non-empty"):
        model.recurrent(building.tokens(2, 3, 4), model.init_state(2))


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize("depth", [0, 1, 2, None])
def test_truncation(depth: int | None, recompute: int) -> None:
    """Each segment's loss counts once, and its gradient reaches the depth's segments before it."""
    model, tokens_BT = building.build(OWN), building.tokens(3, sum(LENGTHS))
    losses_BS = truncation.read(model, tokens_BT, LENGTHS, depth=depth, recompute=recompute).auxiliary
    assert losses_BS is not None
    torch.testing.assert_close(losses_BS, expected(model, tokens_BT))
    summed: dict[str, Tensor] = {}
    for s in range(len(LENGTHS)):
        first = 0 if depth is None else max(0, s - depth)
        state = model.init_state(3)
        for i, tokens_BN in enumerate(tokens_BT.split(LENGTHS, 1)[: s + 1]):
            state = state.detach() if 0 < i == first else state
            output = model.segment(tokens_BN, state)
            state = output.state
        assert output.auxiliary is not None
        own = gradients(model, output.auxiliary.sum())
        summed = {name: summed.get(name, 0) + value for name, value in own.items()}
    assert_same(gradients(model, losses_BS.sum()), summed)


def module(*words: str) -> TrainingModule:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        given = ["model=infini", f"model.layer_memory={OWN}", *SMALL, *words]
        with composing.allowing(given, None):
            config = check(compose("train", given))
    return build(config).module


def step(made: TrainingModule, batch: Any) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Metrics, and the gradients of the first training step, computed as Lightning does."""
    made.training_step(batch, 0).backward()
    found = {name: p.grad for name, p in made.model.named_parameters()}
    return made.train_metrics, {
        name: torch.zeros(()) if grad is None else grad for name, grad in found.items()
    }


@pytest.mark.parametrize("words", [[], ["model.bptt_depth=0"], ["trainer.recompute=segment"]], ids=str)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_answers(words: list[str], accumulate: int) -> None:
    """The mean over batch rows and all segments, those without an answer too."""
    made = module(*COPY, *words, f"trainer.accumulate={accumulate}")
    batch = next(iter(made.stream))
    metrics, found = step(made, batch)
    plain = module(*COPY, *words, "model.layer_memory=infini")
    plain.model.load_state_dict(made.model.state_dict())
    plain_metrics, without = step(plain, batch)
    kept = truncation.read(made.model, batch.tokens_BT, batch.segment_lengths, depth=made.objective.depth)
    assert kept.auxiliary is not None and kept.auxiliary.shape == (4, 3)
    torch.testing.assert_close(metrics["train/auxiliary_loss"], kept.auxiliary.mean().detach())
    torch.testing.assert_close(metrics["train/loss"], plain_metrics["train/loss"])
    assert "train/auxiliary_loss" not in plain_metrics
    auxiliary = gradients(made.model, kept.auxiliary.mean())
    assert_same(found, {name: without[name] + auxiliary[name] for name in found})
    assert max(grad.abs().max() for grad in auxiliary.values()) > 1e-3


@pytest.mark.parametrize("accumulate", [1, 3])
def test_text(accumulate: int, tmp_path: Path) -> None:
    """Rows in which a document ends have fewer targets and the same number of segments."""
    for split in ("train", "validation", "test"):
        (tmp_path / split).mkdir()
        for n, text in enumerate(
            ("a short one", "one that is so long that it goes on and on and on", "three")
        ):
            (tmp_path / split / f"{n}.txt").write_text(text)
    sizes = ["task.segment_length=8", "task.num_segments=3", "task.batch_size=3"]
    words = ["task=text", f"task.data_dir={tmp_path}", *sizes, f"trainer.accumulate={accumulate}"]
    made, plain = module(*words), module(*words, "model.layer_memory=infini")
    plain.model.load_state_dict(made.model.state_dict())
    batch = next(iter(made.stream))
    (metrics, found), (plain_metrics, without) = step(made, batch), step(plain, batch)
    kept = truncation.read(
        made.model, batch.tokens_BT, batch.segment_lengths, begins_BS=batch.begins_BS
    ).auxiliary
    assert kept is not None and kept.shape == (3, 3)
    torch.testing.assert_close(metrics["train/auxiliary_loss"], kept.mean().detach())
    torch.testing.assert_close(metrics["train/loss"], plain_metrics["train/loss"])
    auxiliary = gradients(made.model, kept.mean())
    assert_same(found, {name: without[name] + auxiliary[name] for name in found})


def test_it_is_logged(tmp_path: Path) -> None:
    """A mean of numbers at hand in each line, and trained together with the loss."""
    own = ["model=infini", f"model.layer_memory={OWN}", "+model.loss_weight=5.0"]
    run = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "SMALL", [w for w in resuming.SMALL if "memory_tokens" not in w])
        resuming.train(resuming.config(run, *own))
    logged = [line["train/auxiliary_loss"] for line in resuming.numbers(run) if "train/loss" in line]
    assert len(logged) == 14 and all(value > 0 for value in logged)
