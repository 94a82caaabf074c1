"""Right answers, counted in two ways.

Teacher-forced: each token of the answer is predicted with the true ones before it. Free-running: the model reads its own
predictions, at segment borders too, so no true token of the answer reaches it. The published code puts the true token in at the
first position of each answer segment; here nothing of the answer is ever given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memlab.models.base import Decoder


@torch.no_grad()
def free_running(model: Decoder, prompt_BP: Tensor, answer_tokens: int, segment_lengths: Sequence[int]) -> Tensor:
    """Greedy continuation of a prompt, token by token, with memory written at each segment's end.

    Args:
        prompt_BP: the P tokens before the answer, the start sign included.
        answer_tokens: A, how many tokens to predict.
        segment_lengths: how the P + A - 1 tokens that are read are cut.

    Returns:
        The predicted token ids [B, A].
    """
    prompt = prompt_BP.shape[1]
    predicted: list[Tensor] = []
    state = model.init_state(prompt_BP.shape[0])
    at = 0
    for length in segment_lengths:
        known = min(max(prompt - at, 0), length)
        open = model.begin(state)
        if known:
            logits_BnV, open = model.extend(prompt_BP[:, at : at + known], open)
            if at + known == prompt:
                predicted.append(logits_BnV[:, -1].argmax(-1))
        for _ in range(known, length):
            logits_BnV, open = model.extend(predicted[-1][:, None], open)
            predicted.append(logits_BnV[:, -1].argmax(-1))
        at += length
        if len(predicted) < answer_tokens:
            state = model.close(open)
    return torch.stack(predicted, dim=1)


@dataclass
class Score:
    """Counts of right tokens and of wholly right samples; add batches to it, then read the shares."""

    tokens: int = 0
    right_tokens: int = 0
    samples: int = 0
    right_samples: int = 0

    def add(self, predicted_BA: Tensor, answer_BA: Tensor) -> None:
        right = predicted_BA == answer_BA
        self.tokens += right.numel()
        self.right_tokens += int(right.sum())
        self.samples += len(right)
        self.right_samples += int(right.all(dim=1).sum())

    @property
    def accuracy(self) -> float:
        """Share of right tokens ("per-character accuracy" of the RMT paper)."""
        return self.right_tokens / max(1, self.tokens)

    @property
    def exact_match(self) -> float:
        """Share of samples whose every answer token is right."""
        return self.right_samples / max(1, self.samples)
