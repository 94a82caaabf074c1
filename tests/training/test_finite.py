"""A loss or gradient that is not a number."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from memlab.training import checkpoints, finite
from memlab.training.module import TrainingModule
from tests.training.resuming import assert_same, config, numbers, train


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_not_a_number_stops_before_the_step(
    value: float, where: str, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told with step, learning rate and parameter; the weights and the last checkpoint are those of
    before.
    """
    original = TrainingModule.training_step
    weights: list[dict[str, Any]] = []
    names: list[str] = []

    def training_step(self: Any, *args: Any) -> Any:
        loss = original(self, *args)
        if self.global_step != 9:
            return loss
        weights.append({name: value.clone() for name, value in self.state_dict().items()})
        weights.append(self.state_dict())  # the same tensors, which the step would change
        if where == "loss":
            self.train_metrics["train/loss"] = loss.detach() + value
            return loss
        name, parameter = next(self.model.named_parameters())
        names.append(name)
        parameter.register_hook(lambda grad: torch.full_like(grad, value))
        return loss

    monkeypatch.setattr(TrainingModule, "training_step", training_step)
    run = tmp_path / "run"
    with pytest.raises(finite.DivergedError) as stopped:
        train(config(run))
    message = str(stopped.value)
    # logged behind the step
    (rate,) = (line["train/lr"] for line in numbers(whole) if line["step"] == 9 and "train/lr" in line)
    assert (
        message.startswith("step 10: the loss is ")
        and f"learning rate {rate:.3g}" in message
        and "last.ckpt" in message
    )
    assert (
        f"the loss is {value}" if where == "loss" else f"the largest gradient {value}, of {names[0]} (1 of"
    ) in message
    before, after = weights
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert checkpoints.read(run / "checkpoints" / "last.ckpt")["global_step"] == 9
    assert not (run / "result.json").exists()
    monkeypatch.undo()
    train(config(run, "resume=auto"))
    assert_same(run, whole)


def test_clipping_is_that_of_torch() -> None:
    models = [torch.nn.Linear(5, 3) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model(torch.ones(2, 5) * 7).pow(2).sum().backward()
    finite.clip(models[0], torch.optim.SGD(models[0].parameters()), torch.tensor(1.0), 0.3, 1)
    torch.nn.utils.clip_grad_norm_(models[1].parameters(), 0.3)
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*(m.parameters() for m in models), strict=True))  # type: ignore[arg-type]
