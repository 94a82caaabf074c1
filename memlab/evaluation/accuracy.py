"""Free-running answers.

Teacher-forced: each token of the answer is predicted from the true ones before it. Free-running: the model
reads its own predictions, also across segment boundaries, so no true token of the answer reaches it. The
published code inserts the true token at the first position of each answer segment; here the model receives
nothing of the answer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memlab.models.base import Open
from memlab.models.decoder import Decoder

LAST = slice(-1, None)  # the only token of a piece whose scores are needed


@torch.no_grad()
def free_running(
    model: Decoder, tokens_BT: Tensor, answer_T: Sequence[bool], segment_lengths: Sequence[int]
) -> Tensor:
    """Greedy predictions of the answer, token by token, with memory written at each segment's end.

    Args:
        tokens_BT: tokens of the samples. Those of the answer are ignored: the model reads its predictions
            instead.
        answer_T: whether the target at each position, the next token, belongs to the answer.
        segment_lengths: lengths of the segments that the T tokens are cut into.

    Returns:
        The predicted token ids [B, A], in the order of the A answer positions.
    """
    predicted: list[Tensor] = []
    wanted, state, at = sum(answer_T), model.init_state(tokens_BT.shape[0]), 0
    for length in segment_lengths:
        known_Bn, answer_n = tokens_BT[:, at : at + length], answer_T[at : at + length]
        last_B = predicted[-1] if at and answer_T[at - 1] else None
        if sum(answer_n) == wanted - len(predicted):  # tokens after the last answer are not needed
            answer_n = answer_n[
                : max((t + 1 for t, is_answer in enumerate(answer_n) if is_answer), default=0)
            ]
        more, open = read_on(model, known_Bn[:, : len(answer_n)], answer_n, model.begin(state), last_B)
        predicted += more
        if len(predicted) == wanted:
            return torch.stack(predicted, dim=1)
        state, at = model.close(open), at + length
    raise ValueError(f"answer_T wants {wanted} tokens, and the segments hold {len(predicted)} of them")


def read_on(
    model: Decoder, known_Bn: Tensor, answer_n: Sequence[bool], open: Open, last_B: Tensor | None = None
) -> tuple[list[Tensor], Open]:
    """Read n tokens of an open segment and predict, greedily, those that are answers.

    Args:
        known_Bn: tokens to read. Those that are answers are ignored: the predictions are read instead.
        answer_n: whether the target of each token, the token after it, is an answer.
        last_B: the prediction for the first token; None = it is no answer.

    Returns:
        The predicted token ids, a [B] for each answer, and the segment so far.
    """
    predicted: list[Tensor] = []
    at, end = 0, len(answer_n)
    while at < end:  # read known tokens, up to the next one that has to be predicted
        stop = next((t + 1 for t in range(at, end) if answer_n[t]), end)
        part_Bn = known_Bn[:, at:stop]
        if last_B is not None:
            part_Bn = torch.cat([last_B[:, None], part_Bn[:, 1:]], dim=1)
        logits_B1V, open = model.extend(part_Bn, open, LAST)
        last_B = None
        if answer_n[stop - 1]:
            last_B = logits_B1V[:, -1].argmax(-1)
            predicted.append(last_B)
        at = stop
    return predicted, open
