"""Right answers, counted in two ways.

Teacher-forced: each token of the answer is predicted with the true ones before it. Free-running: the model reads its own
predictions, at segment borders too, so no true token of the answer reaches it. The published code puts the true token in at the
first position of each answer segment; here nothing of the answer is ever given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from memlab.models.base import Decoder


@torch.no_grad()
def free_running(model: Decoder, tokens_BT: Tensor, answer_T: Sequence[bool], segment_lengths: Sequence[int]) -> Tensor:
    """Greedy predictions of the answer, token by token, with memory written at each segment's end.

    Args:
        tokens_BT: what a sample reads. Tokens of the answer in it are not looked at: the model reads what it predicted instead.
        answer_T: whether the target at each position, the next token, belongs to the answer.
        segment_lengths: how the T tokens are cut.

    Returns:
        The predicted token ids [B, A], in the order of the A answer positions.
    """
    predicted: list[Tensor] = []
    wanted, state, at = sum(answer_T), model.init_state(tokens_BT.shape[0]), 0
    for length in segment_lengths:
        end, open = at + length, model.begin(state)
        while at < end:  # as far as the tokens are known: up to the next one that has to be predicted
            stop = next((t + 1 for t in range(at, end) if answer_T[t]), end)
            known_Bn = tokens_BT[:, at:stop]
            if at and answer_T[at - 1]:
                known_Bn = torch.cat([predicted[-1][:, None], known_Bn[:, 1:]], dim=1)
            logits_BnV, open = model.extend(known_Bn, open)
            if answer_T[stop - 1]:
                predicted.append(logits_BnV[:, -1].argmax(-1))
            at = stop
            if len(predicted) == wanted:
                return torch.stack(predicted, dim=1)
        state = model.close(open)
    raise ValueError(f"answer_T wants {wanted} tokens, and the segments hold {len(predicted)} of them")


@dataclass
class Score:
    """Counts of right tokens and of wholly right samples; add batches to it, then read the shares."""

    tokens: int = 0
    right_tokens: int = 0
    samples: int = 0
    right_samples: int = 0

    @classmethod
    def of(cls, parts: Sequence[Score]) -> Score:
        """Of all samples of several scores."""
        return cls(*(sum(counts) for counts in zip(*map(astuple, parts), strict=True)))

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
