"""The control `shuffled` gives a document the memory of a document that shares nothing with it."""

from __future__ import annotations

import importlib
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from memlab.config import cli
from memlab.config.checks import build_task, check
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.errors import ConfigError
from memlab.evaluation import lengths, samples
from memlab.evaluation.intervals import grouped_share, token_share
from memlab.models.base import others
from memlab.tasks.base import SyntheticTask
from tests.small import build


def task(name: str) -> SyntheticTask | None:
    config: Config = cli.compose_checked("train", [f"task={name}", "model=rmt_encoder"], check)
    made = build_task(config)
    return made if isinstance(made, SyntheticTask) else None


def with_groups() -> list[str]:
    """Tasks whose neighbouring samples share their content; there is no list to edit."""
    found = []
    for file in sorted(Path(config_dir(), "task").glob("*.yaml")):
        made = task(file.stem) if "data_dir" not in file.read_text() else None
        if made is not None and made.members > 1:
            found.append(file.stem)
    return found


NAMES = with_groups()


def test_there_are_tasks_with_groups() -> None:
    assert {"associative_retrieval", "reason_facts"} <= set(NAMES)


@pytest.mark.parametrize("members", [1, 2, 3, 4, 7])
def test_partners_are_of_another_group_wherever_a_batch_begins(members: int) -> None:
    for rows in range(2 * members, 5 * members + 2):
        from_B = others(rows, members).numpy()
        assert sorted(from_B) == list(range(rows)), "each row is read by one"
        for start in range(members):
            group = (start + np.arange(rows)) // members
            assert (group != group[from_B]).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_perfect_memory_of_another_document_is_at_chance(name: str) -> None:
    """What a solver says after another sample's segments and a sample's own last one."""
    made = task(name)
    assert made is not None
    solve = importlib.import_module(f"tests.tasks.oracles.{name}").solve
    batch = made.batch("test", 1, 511)  # begins within a group
    last = batch.segment_lengths[-1]

    def right(from_B: np.ndarray) -> float:
        hits = []
        for row, other in enumerate(from_B):
            read = [*batch.tokens_BT[other, :-last].tolist(), *batch.tokens_BT[row, -last:].tolist()]
            try:
                said = solve(made, read)
            except (KeyError, ValueError, StopIteration, IndexError):  # the other one has no such fact
                said = []
            truth = batch.targets_BT[row][batch.answer_BT[row]].tolist()
            hits.append(said[-1:] == truth[-1:])
        return float(np.mean(hits))

    assert right(np.arange(511)) == 1.0, "with its own memory it is solved"
    chance = made.chance
    bound = 4 * math.sqrt(chance * (1 - chance) / (511 / made.members))
    assert right(others(511, batch.members).numpy()) < chance + bound


def test_a_neighbour_of_the_same_group_would_not_do() -> None:
    """The test above can fail: with the row before, three of four rows of retrieval have their own pairs."""
    made = task("associative_retrieval")
    assert made is not None
    batch = made.batch("test", 0, 64)
    first = batch.tokens_BT[:, : batch.segment_lengths[0]]
    share = (first == np.roll(first, 1, axis=0)).all(1).mean()
    assert share == pytest.approx(1 - 1 / made.members)
    exchanged = first[others(64, batch.members).numpy()]
    assert not (first == exchanged).all(1).any()


def test_too_few_samples_for_another_group_are_said() -> None:
    lengths.check(8, ["shuffled"], members=4)
    with pytest.raises(ConfigError, match=r"samples=7: .* 4 neighbours share their content; it needs 8"):
        lengths.check(7, ["shuffled"], members=4)
    made = task("associative_retrieval")
    assert made is not None
    batch = made.batch("test", 0, 2 * made.members - 1)
    with pytest.raises(ValueError, match="two groups"):
        samples.read(build("rmt", made.vocab_size), batch, ["plain", "shuffled"])
    with pytest.raises(ConfigError, match=r"another group of samples; task\.batch_size=4"):
        words = ["task=associative_retrieval", "task.batch_size=4", "model.memory=shuffled"]
        cli.compose_checked("train", words, check)


def test_a_model_reads_the_state_of_another_group() -> None:
    """model.memory=shuffled exchanges by groups as the evaluation does."""
    torch.manual_seed(0)
    model = build("rmt", 11, memory="shuffled")
    model.members = 2
    x = torch.randint(11, (6, 2, 3))
    plain = build("rmt", 11)
    state = plain.segment(x[:, 0], plain.init_state(6)).state
    wanted = plain.segment(x[:, 1], plain.exchanged(state, torch.tensor([4, 5, 0, 1, 2, 3]))).logits
    torch.testing.assert_close(model(x).logits[:, 1], wanted)


def test_intervals_take_groups_for_what_is_independent() -> None:
    right = [1, 1, 1, 1, 0, 0, 0, 0] * 25  # groups of four that are wholly right or wrong
    alone, grouped = token_share(right, 1), grouped_share(right, 1, 4)
    assert grouped_share(right, 1, 1) == alone
    width, wider = alone[1] - alone[0], grouped[1] - grouped[0]
    assert wider == pytest.approx(2 * width, rel=0.1), "a quarter of the evidence, twice the width"
    low, high = grouped_share([1] * 40, 1, 4)
    assert high == 1.0 and low == pytest.approx(token_share([1] * 10, 1)[0])
    assert grouped_share([2, 2, 1], 2, 2)[0] < 5 / 6 < grouped_share([2, 2, 1], 2, 2)[1] <= 1.0
