"""AdamW with the parameter groups that memories need, and the schedule of the learning rate."""

from __future__ import annotations

import math

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from memlab.config.sections import OptimConfig


def build(model: nn.Module, config: OptimConfig, max_steps: int) -> tuple[AdamW, LambdaLR]:
    """The optimizer and its schedule.

    Only the matrices of linear layers have weight decay, not biases, normalisations, embeddings and learned
    memories. Gates (parameters whose name begins with `gate`) have a learning rate of their own: Adam moves a
    scalar by about the learning rate in each step, and a gate has to move far from 0 to open or close
    (huggingface.co/blog/infini-attention found 0.03 in a whole run).
    """
    gates = [p for name, p in model.named_parameters() if name.rpartition(".")[2].startswith("gate")]
    apart = {id(p) for p in gates}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    decayed = [p for p in model.parameters() if id(p) in matrices]
    others = [p for p in model.parameters() if id(p) not in matrices | apart]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if gates:
        groups.append({"params": gates, "weight_decay": 0.0, "lr": config.gate_lr})
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
