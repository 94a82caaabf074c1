"""The bytes measured on the tensors equal the closed forms of what each architecture holds."""

from __future__ import annotations

import pytest
import torch

from memlab.evaluation.memory import measure
from memlab.models.base import Model
from tests import small

LAYERS, HEADS, WIDTH, SLOTS = 3, 2, 12, 5
COUNTER = 8 * LAYERS  # bytes of the length that each layer of full context keeps for each document
DTYPES = [(torch.float32, 4), (torch.float64, 8), (torch.bfloat16, 2)]
LENGTHS = [[7], [4, 4, 4], [2, 6, 1, 3]]


def build(name: str, dtype: torch.dtype) -> Model:
    own = {"memory_tokens": SLOTS} if name in ("rmt", "memory_transformer") else {}
    return small.build(name, 11, layers=LAYERS, width=WIDTH, heads=HEADS, **own).to(dtype)


def keys_and_values(tokens: int, size: int) -> int:
    """Bytes of the keys and values of so many tokens in all layers."""
    return 2 * LAYERS * WIDTH * tokens * size


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "size"), DTYPES)
def test_rmt_carries_its_memory_and_holds_the_longest_segment_with_its_read_memory(
    dtype: torch.dtype, size: int, lengths: list[int]
) -> None:
    """m * d carried whatever the length; while a segment is read, keys and values of read memory and
    segment beside it.
    """
    cost = measure(build("rmt", dtype), lengths)
    assert cost.state_bytes == SLOTS * WIDTH * size
    assert cost.peak_bytes == SLOTS * WIDTH * size + keys_and_values(SLOTS + max(lengths), size)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "size"), DTYPES)
def test_models_without_memory_carry_nothing_and_hold_the_longest_segment(
    dtype: torch.dtype, size: int, lengths: list[int]
) -> None:
    cost = measure(build("segment", dtype), lengths)
    assert cost.state_bytes == 0 and cost.compression_carry is None
    assert cost.peak_bytes == keys_and_values(max(lengths), size)
    cost = measure(build("memory_transformer", dtype), lengths)
    assert cost.state_bytes == 0 and cost.compression_carry is None
    assert cost.peak_bytes == keys_and_values(SLOTS + max(lengths), size)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "size"), DTYPES)
def test_full_context_carries_the_keys_and_values_of_every_token(
    dtype: torch.dtype, size: int, lengths: list[int]
) -> None:
    cost = measure(build("full", dtype), lengths)
    assert cost.state_bytes == keys_and_values(sum(lengths), size) + COUNTER
    assert cost.compression_carry == pytest.approx(1, rel=COUNTER / cost.kv_full_bytes)


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("dtype", "size"), DTYPES)
def test_full_context_holds_each_token_once_while_it_reads(
    dtype: torch.dtype, size: int, lengths: list[int]
) -> None:
    """Carried state plus the current segment's keys and values (DESIGN 5):
    at its end that is the whole cache, one time.
    """
    cost = measure(build("full", dtype), lengths)
    assert cost.peak_bytes == keys_and_values(sum(lengths), size) + COUNTER
    assert cost.compression_peak == pytest.approx(1, rel=COUNTER / cost.kv_full_bytes)


@pytest.mark.parametrize("name", ["rmt", "memory_transformer", "segment", "full"])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_ratios_are_a_full_cache_over_what_is_held(name: str, lengths: list[int]) -> None:
    cost = measure(build(name, torch.float32), lengths)
    assert cost.tokens == sum(lengths)
    assert cost.kv_full_bytes == keys_and_values(sum(lengths), 4)
    assert cost.compression_carry == (cost.kv_full_bytes / cost.state_bytes if cost.state_bytes else None)
    assert cost.compression_peak == cost.kv_full_bytes / cost.peak_bytes
    assert cost.to_dict() == {
        "tokens": cost.tokens,
        "kv_full_bytes": cost.kv_full_bytes,
        "state_bytes": cost.state_bytes,
        "peak_bytes": cost.peak_bytes,
        "compression_carry": cost.compression_carry,
        "compression_peak": cost.compression_peak,
        "used_bytes": cost.state_bytes,
    }


def test_compression_of_a_constant_memory_grows_with_the_length() -> None:
    model = build("rmt", torch.float32)
    short, long = measure(model, [4] * 2), measure(model, [4] * 20)
    assert long.state_bytes == short.state_bytes and long.peak_bytes == short.peak_bytes
    assert long.compression_carry == pytest.approx(10 * short.compression_carry)
    assert long.compression_peak == pytest.approx(10 * short.compression_peak)


def test_a_state_is_weighed_as_it_is_not_by_the_size_of_a_learned_parameter() -> None:
    """One document of a batch costs the batch's bytes divided by its size."""
    model = build("rmt", torch.float32)
    assert model.init_state(6).nbytes == 6 * SLOTS * WIDTH * 4
    assert model(torch.zeros(6, 2, 3, dtype=torch.long)).state.nbytes == 6 * SLOTS * WIDTH * 4


def test_an_open_segment_counts_its_state_and_all_that_its_tokens_may_look_at() -> None:
    model = build("rmt", torch.float32)
    open = model.begin(model.init_state(2))
    assert open.nbytes == 2 * (SLOTS * WIDTH * 4 + keys_and_values(SLOTS, 4))
    _, open = model.extend(torch.zeros(2, 3, dtype=torch.long), open)
    assert open.nbytes == 2 * (SLOTS * WIDTH * 4 + keys_and_values(SLOTS + 3, 4))
