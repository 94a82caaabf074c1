"""AdamW with the groups that memories need, and the learning rate over the steps."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from memlab.config import OptimConfig


def build(model: nn.Module, config: OptimConfig, max_steps: int) -> tuple[AdamW, LambdaLR]:
    """Weight decay is for the matrices of linear layers alone: not for biases, normalisations, embeddings and learned memories."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    beta1, beta2 = config.betas
    optimizer = AdamW(groups, lr=config.lr, betas=(beta1, beta2), fused=True)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "constant":
            return 1.0
        done = (step - config.warmup_steps) / max(1, max_steps - config.warmup_steps)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return optimizer, LambdaLR(optimizer, factor)
