"""Generation: tokens drawn one by one, each read once, with memory written at each segment's end.

Legend: B batch, T tokens of the prompt, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from memlab.evaluation.accuracy import LAST
from memlab.models.base import Model, ModelState, Open, Unread


@torch.no_grad()
def generate(
    model: Model,
    prompt_BT: Tensor,
    tokens: int,
    segment_length: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int = 0,
    choices: int | None = None,
) -> Iterator[Tensor]:
    """Generate tokens, each [B], on the CPU.

    Needs memory for the carried state and one open segment, however many tokens there were before.

    Args:
        model: one that predicts tokens (not one that answers once).
        prompt_BT: token ids of a document from its beginning, at least one.
        tokens: how many tokens to generate.
        segment_length: N, tokens after which memory is written.
        temperature: of the softmax that tokens are drawn from; 0 = always the most probable token.
        top_k: draw from this many most probable tokens; None = from all.
        seed: the same seed draws the same tokens.
        choices: only ids below this may be generated; None = all.
    """
    # on the CPU, so that draws do not depend on the model's device
    generator = torch.Generator().manual_seed(seed)
    next_BT: Tensor = prompt_BT
    state: ModelState | Open | Unread | None = None
    for _ in range(tokens):
        logits_BV, state = _read(model, next_BT, state, segment_length)
        drawn_B = draw(logits_BV[:, :choices].cpu(), temperature, top_k, generator)
        yield drawn_B
        next_BT = drawn_B[:, None]


def _read(
    model: Model, tokens_BT: Tensor, state: ModelState | Open | Unread | None, segment_length: int
) -> tuple[Tensor, ModelState | Open | Unread]:
    """The scores after the last token, [B, V], and the state there."""
    pieces = model.stream(tokens_BT, state, segment_length=segment_length, scored=LAST)
    piece = deque(pieces, maxlen=1).pop()
    return piece.logits[:, -1], piece.state


def draw(logits_BV: Tensor, temperature: float, top_k: int | None, generator: torch.Generator) -> Tensor:
    """One token per batch row, [B]; arguments as in `generate`."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    best_BK, ids_BK = logits_BV.double().topk(min(top_k or logits_BV.shape[1], logits_BV.shape[1]))
    p_BK = ((best_BK - best_BK[:, :1]) / temperature).softmax(-1)  # the best is 0, so nothing overflows
    return ids_BK.gather(1, torch.multinomial(p_BK, 1, generator=generator))[:, 0]
