"""Stop the training before a loss or gradient that is not finite reaches the weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from memlab.errors import UserError
from memlab.training.sharding import whole


class DivergedError(UserError):
    """The loss or the gradient is NaN or infinite. The weights are those of the step before."""


def clip(model: nn.Module, optimizer: Optimizer, loss: Tensor, most: float | None, step: int) -> None:
    """Check a step's loss and gradient, and clip the gradient as `torch.nn.utils.clip_grad_norm_` does.

    Loss and norm are checked together, so that each step waits for a GPU only once.

    Args:
        loss: of the step, a scalar.
        most: largest norm; None = no clipping.
        step: number of the step to be made, counted from 1.

    Raises:
        DivergedError: loss or gradient is not finite. Names the step, the learning rate and the parameter
            with the largest gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in parameters]))
    if not torch.isfinite(norm + loss):
        raise DivergedError(_message(model, loss, step, optimizer.param_groups[0]["lr"]))
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, most, norm)


def _message(model: nn.Module, loss: Tensor, step: int, lr: float) -> str:
    gradients = {name: whole(p.grad.detach()) for name, p in model.named_parameters() if p.grad is not None}
    largest = {name: gradient.abs().max().item() for name, gradient in gradients.items()}
    name = max(largest, key=lambda n: float("inf") if largest[n] != largest[n] else largest[n])
    broken = sum(not gradient.isfinite().all() for gradient in gradients.values())
    return (
        f"step {step}: the loss is {loss.item():.6g} at learning rate {lr:.3g}, and the largest gradient "
        f"{largest[name]:.3g}, of {name} ({broken} of {len(gradients)} parameters have one that is not "
        "finite). The training stopped before the weights took it; try a smaller optim.lr or "
        "optim.gradient_clip"
    )
