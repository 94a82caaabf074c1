"""Free-running accuracy: a model continues a prompt on its own predictions,
and what it gets right is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memlab.evaluation.accuracy import free_running
from memlab.layers.attention import ALL
from memlab.layers.state import State, state
from memlab.models.base import Open, Scored
from memlab.models.decoder import Decoder
from memlab.tasks.associative_retrieval import AssociativeRetrieval
from memlab.tasks.base import SyntheticTask
from memlab.tasks.copy import Copy
from memlab.tasks.reverse import Reverse
from memlab.training import truncation
from tests import small

VOCABULARY = 13


def build(name: str) -> Decoder:
    return small.build(name, VOCABULARY)


def go_on(model: Decoder, prompt_BP: Tensor, answer_tokens: int, segment_lengths: Sequence[int]) -> Tensor:
    """Free running where the answer is all that comes after a prompt; what stands in its place is never
    looked at.
    """
    nonsense = torch.full((len(prompt_BP), answer_tokens - 1), 10**6)
    answer_T = [False] * (prompt_BP.shape[1] - 1) + [True] * answer_tokens
    return free_running(model, torch.cat([prompt_BP, nonsense], dim=1), answer_T, segment_lengths)


def reread(model: Decoder, prompt_BP: Tensor, answer_tokens: int, segment_lengths: list[int]) -> Tensor:
    """For each token of the answer, the whole sequence so far is read from its beginning,
    the last segment being cut short.
    """
    tokens_BT = prompt_BP
    for _ in range(answer_tokens):
        left, parts = tokens_BT.shape[1], []
        for length in segment_lengths:
            if left > 0:
                parts.append(min(length, left))
            left -= length
        logits_BTV = truncation.read(model, tokens_BT, parts).logits
        tokens_BT = torch.cat([tokens_BT, logits_BTV[:, -1].argmax(-1, keepdim=True)], dim=1)
    return tokens_BT[:, prompt_BP.shape[1] :]


@pytest.mark.parametrize("name", ["rmt", "full"])
@pytest.mark.parametrize("lengths", [[11], [4, 7], [3, 3, 5], [1] * 11])
def test_an_answer_with_given_tokens_in_between(name: str, lengths: list[int]) -> None:
    """As with several queries: the predicted value is read where the true one stood,
    the next query as it is given.
    """
    model = build(name)
    tokens_BT = torch.randint(VOCABULARY, (8, 11), generator=torch.Generator().manual_seed(5))
    answer_T = [t in (3, 4, 7, 10) for t in range(11)]
    predicted_BA = free_running(model, tokens_BT, answer_T, lengths)
    read_BT, expected = tokens_BT.clone(), []
    for t in (3, 4, 7, 10):
        logits_BTV = truncation.read(model, read_BT, lengths).logits
        expected.append(logits_BTV[:, t].argmax(-1))
        if t < 10:
            read_BT[:, t + 1] = expected[-1]
    assert predicted_BA.tolist() == torch.stack(expected, dim=1).tolist()
    assert not torch.equal(read_BT, tokens_BT)


@pytest.mark.parametrize("name", ["rmt", "memory_transformer", "segment", "full"])
@pytest.mark.parametrize(
    ("prompt", "answer", "lengths"),
    [
        (5, 8, [4, 4, 4]),  # borders within prompt and answer
        (4, 9, [4, 4, 4]),  # the prompt ends at a border: the first token of a segment is a prediction
        (8, 5, [4, 4, 4]),
        (12, 1, [4, 4, 4]),  # an answer of one token, after the last segment
        (5, 4, [8]),  # a single segment
        (6, 7, [3, 1, 5, 1, 2]),  # unequal lengths
        (4, 9, [3, 1, 5, 1, 2]),
        (1, 6, [1, 1, 1, 1, 1, 1]),  # every token a segment
    ],
)
def test_equals_reading_the_growing_sequence_anew_for_each_token(
    name: str, prompt: int, answer: int, lengths: list[int]
) -> None:
    model = build(name)
    prompt_BP = torch.randint(VOCABULARY, (16, prompt), generator=torch.Generator().manual_seed(5))
    predicted_BA = go_on(model, prompt_BP, answer, lengths)
    assert predicted_BA.shape == (16, answer) and not predicted_BA.requires_grad
    assert predicted_BA.tolist() == reread(model, prompt_BP, answer, lengths).tolist()
    assert len(predicted_BA.unique()) > 3, (
        "predictions that are all alike would be equal for the wrong reasons"
    )


def test_what_is_predicted_in_the_second_segment_depends_on_the_memory_of_the_first() -> None:
    """The comparison above would be weak if it did not."""
    prompt_BP = torch.randint(VOCABULARY, (32, 6), generator=torch.Generator().manual_seed(5))
    other_BP = prompt_BP.clone()
    other_BP[:, :4] = (other_BP[:, :4] + 1) % VOCABULARY
    for name, depends in (("rmt", True), ("full", True), ("segment", False), ("memory_transformer", False)):
        first, second = (go_on(build(name), p, 3, [4, 4]) for p in (prompt_BP, other_BP))
        assert (not torch.equal(first, second)) == depends, name


@state
class Heard(State):
    """All tokens of the document so far."""

    tokens_BP: Tensor


class Oracle(Decoder):
    """Knows the right next token wherever it follows from what it has read, and writes token 0 once it has
    read a mistake.

    It has the three methods of open segments alone, and checks that they are called in order.
    """

    def __init__(self, solve: Any, vocab_size: int) -> None:
        torch.nn.Module.__init__(self)
        self.solve, self.vocab_size = solve, vocab_size
        self.closed = 0

    def init_state(self, batch_size: int) -> Any:
        return Heard(torch.zeros(batch_size, 0, dtype=torch.long))

    def begin(self, state: Any) -> Open:
        return Open(state, (), read=0)

    def extend(self, tokens_Bn: Tensor, open: Open, scored: Scored = ALL) -> tuple[Tensor, Open]:
        assert tokens_Bn.shape[1] > 0
        heard: Any = open.state
        heard_BP = torch.cat([heard.tokens_BP, tokens_Bn], dim=1)
        before = heard.tokens_BP.shape[1]
        answers = [
            [self.solve(row[: before + i + 1]) for i in range(tokens_Bn.shape[1])]
            for row in heard_BP.tolist()
        ]
        logits_BnV = torch.nn.functional.one_hot(torch.tensor(answers), self.vocab_size).float()
        state: Any = Heard(heard_BP)
        return logits_BnV[:, scored], Open(state, (), open.read + tokens_Bn.shape[1])

    def close(self, open: Open) -> Any:
        self.closed += 1
        return open.state


def count_up(read: list[int]) -> int:
    return (read[-1] + 1) % VOCABULARY


@pytest.mark.parametrize("lengths", [[9], [3, 3, 3], [4, 5], [1] * 9, [2, 6, 1]])
def test_a_model_that_counts_goes_on_counting_across_borders(lengths: list[int]) -> None:
    oracle = Oracle(count_up, VOCABULARY)
    truth_BT = (torch.arange(10) + torch.tensor([[0], [7], [12]])) % VOCABULARY
    assert torch.equal(go_on(oracle, truth_BT[:, :4], 6, lengths), truth_BT[:, 4:])
    assert oracle.closed == len(lengths) - 1  # after the last segment no memory is needed


def right_answer(task: SyntheticTask, read: list[int]) -> int:
    """The next token by the task's definition, or 0 if what was read of the answer is wrong."""
    n = task.length
    if isinstance(task, AssociativeRetrieval):
        return read[read.index(read[2 * n]) + 1] if len(read) == 2 * n + 2 else 0
    answer = read[:n][::-1] if isinstance(task, Reverse) else read[:n] * 2
    written = read[n + 1 :]
    return answer[len(written)] if len(read) > n and written == answer[: len(written)] else 0


@pytest.mark.parametrize(
    ("task", "own"),
    [
        # the prompt ends within a segment
        (Copy, {"length": 4, "symbols": 6, "num_segments": 3, "segment_lengths": None, "align": None}),
        # the prompt ends at a border
        (Copy, {"length": 4, "symbols": 6, "num_segments": 1, "segment_lengths": [5, 5, 2], "align": None}),
        (Reverse, {"length": 6, "symbols": 9, "num_segments": 4, "segment_lengths": None, "align": None}),
        (Reverse, {"length": 6, "symbols": 9, "num_segments": 12, "segment_lengths": None, "align": None}),
        (
            AssociativeRetrieval,
            {
                "length": 4,
                "num_segments": 5,
                "segment_lengths": None,
                "align": None,
                "keys": 26,
                "ask": "value",
                "queries": 1,
            },
        ),
    ],
)
def test_a_solver_of_the_task_is_right_in_everything_and_one_mistake_costs_what_follows(
    task: Any, own: dict[str, Any]
) -> None:
    """On real samples, cut into prompt and answer by the answer's mask."""
    made = task(**own, batch_size=4, validation_size=8, test_size=20)
    batch = made.batch("test", 0, 20)
    first = int(batch.answer_BT[0].argmax())
    prompt_BP, truth_BA = (
        torch.from_numpy(np.ascontiguousarray(a))
        for a in (batch.tokens_BT[:, : first + 1], batch.targets_BT[:, first:])
    )
    oracle = Oracle(lambda read: right_answer(made, read), made.vocab_size)
    predicted_BA = go_on(oracle, prompt_BP, made.answer_tokens, made.segment_lengths)
    assert predicted_BA.shape == (20, made.answer_tokens) and torch.equal(predicted_BA, truth_BA)

    def wrong_at_second(read: list[int]) -> int:
        return 0 if len(read) == first + 2 else right_answer(made, read)

    oracle = Oracle(wrong_at_second, made.vocab_size)
    predicted_BA = go_on(oracle, prompt_BP, made.answer_tokens, made.segment_lengths)
    assert torch.equal(predicted_BA[:, 0], truth_BA[:, 0])
    assert (predicted_BA[:, 1:] == 0).all()  # it read its own mistake, not the true token
