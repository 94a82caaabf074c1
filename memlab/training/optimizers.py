"""AdamW with the parameter groups that memories need, and the schedule of the learning rate."""

from __future__ import annotations

import itertools
import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from memlab.config.sections import OptimConfig
from memlab.layers.low_rank import LowRank
from memlab.models.base import Model
from memlab.models.ownership import memory_parameters


def build(model: nn.Module, config: OptimConfig, max_steps: int) -> tuple[AdamW, LambdaLR]:
    """The optimizer of the parameters that are trained, and its schedule.

    Only the matrices of linear layers, and those of their adapters, have weight decay, not biases,
    normalisations, embeddings and learned memories. Gates (parameters whose name begins with `gate`) have a
    learning rate of their own: Adam moves a scalar by about the learning rate in each step, and a gate has to
    move far from 0 to open or close (huggingface.co/blog/infini-attention found 0.03 in a whole run). So can
    the other parameters that the memory added to the backbone (`optim.memory_lr`).
    """
    rates = {"backbone": config.lr, "memory": config.memory_lr, "gates": config.gate_lr}
    memory = {}  # "memory" is only a group of its own with a rate of its own
    if config.memory_lr is not None and isinstance(model, Model):
        memory = memory_parameters(model)
    matrices = {id(p) for child in model.modules() for p in _matrices(child)}
    groups: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            gate = name.rpartition(".")[2].startswith("gate")
            kind = "gates" if gate else "memory" if name in memory else "backbone"
            groups.setdefault((kind, id(parameter) in matrices and not gate), []).append(parameter)
    beta1, beta2 = config.betas
    optimizer = AdamW(
        [
            {"params": groups[key], "lr": rates[key[0]], "weight_decay": config.weight_decay * key[1]}
            for key in itertools.product(rates, (True, False))
            if key in groups
        ],
        lr=config.lr,
        betas=(beta1, beta2),
        fused=True,
    )

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return optimizer, LambdaLR(optimizer, factor)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module, without those of its children, that have weight decay."""
    if isinstance(module, LowRank):
        return [module.A_CrD, module.B_Pr]
    if isinstance(module, nn.Linear):  # an adapted weight is not a parameter of its layer
        return [p for name, p in module.named_parameters(recurse=False) if name == "weight"]
    return []
