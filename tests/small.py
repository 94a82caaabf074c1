"""Small models in float64 with the same weights every time, for tests of what is built on models."""

from __future__ import annotations

import torch

from memlab.models.base import Model
from memlab.models.memory_transformer import MemoryTransformer
from memlab.models.rmt import RMT
from memlab.models.transformer import Transformer


def build(name: str, vocab_size: int) -> Model:
    """`rmt`, `memory_transformer`, or a transformer of context `segment` or `full`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "dropout": 0.0}
    models = {
        "rmt": lambda: RMT(memory_tokens=3, **sizes),
        "memory_transformer": lambda: MemoryTransformer(memory_tokens=3, **sizes),
        "segment": lambda: Transformer(context="segment", **sizes),
        "full": lambda: Transformer(context="full", **sizes),
    }
    return models[name]().double()
