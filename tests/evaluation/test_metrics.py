"""Metrics of answers and of text against their definitions, written out."""

from __future__ import annotations

import io
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from memlab.evaluation import metrics
from memlab.evaluation.loss import nats

NONE = torch.zeros(0)


def test_text_against_the_definitions() -> None:
    nats_BT, counts = torch.rand(3, 40) * 3, torch.rand(3, 40) < 0.7
    positions = torch.arange(40).expand(3, -1) + torch.tensor([[0], [5], [100]])
    found = metrics.of_text(first=6)
    found.update(nats=NONE, positions=NONE.long(), text_bytes=50, words=17)
    for part in range(0, 40, 8):  # in pieces, as it is used
        n, c, p = (t[:, part : part + 8] for t in (nats_BT, counts, positions))
        found.update(nats=n[c], positions=p[c], text_bytes=8)  # bytes may come with the targets, too
    total = sum(nats_BT[b, t].item() for b in range(3) for t in range(40) if counts[b, t])
    tokens = int(counts.sum())
    values = found.compute()
    ranges = values.pop("by_position")
    assert {name: float(value) for name, value in values.items()} == pytest.approx(
        {
            "loss": total / tokens,
            "perplexity": math.exp(total / tokens),
            "bits_per_byte": total / math.log(2) / 90,
            "bits_per_word": total / math.log(2) / 17,
            "word_perplexity": math.exp(total / 17),
        },
        rel=1e-12,
    )
    assert [r["from"] for r in ranges] == [0, 6, 12, 24, 96]
    for r, end in zip(ranges, [6, 12, 24, 48, 192], strict=True):
        inside = counts & (positions >= r["from"]) & (positions < end)
        assert r["tokens"] == int(inside.sum())
        assert r["loss"] == pytest.approx(nats_BT[inside].double().mean().item(), rel=1e-12)
    assert sum(r["tokens"] for r in ranges) == tokens


def test_a_hopeless_model_is_still_a_number() -> None:
    """Word perplexity overflows floats early in training; what is written as JSON must not."""
    found = metrics.of_text(4)
    found.update(nats=torch.full((8,), 900.0), positions=torch.arange(8), text_bytes=8, words=1)
    values = found.compute()
    del values["by_position"]
    assert all(math.isfinite(float(value.float())) for value in values.values())


def test_sums_do_not_lose_what_single_precision_would() -> None:
    """Small losses after a large one: each would vanish in a sum of 32 bits."""
    metric, by_position = metrics.CrossEntropy(), metrics.CrossEntropyByPosition(4)
    metric.update(torch.tensor([1e9]))
    by_position.update(torch.tensor([1e9]), torch.zeros(1))
    for _ in range(100):
        metric.update(torch.ones(1))
        by_position.update(torch.ones(1), torch.zeros(1))
    assert float(metric.compute()) == (1e9 + 100) / 101 == by_position.compute()[0]["loss"]


def test_nothing_read_is_not_a_number() -> None:
    metric = metrics.BitsPerByte()
    metric.update(NONE)
    assert math.isnan(metric.compute())


def test_answers_count_tokens_and_whole_samples_over_batches() -> None:
    found = metrics.of_answers(vocab_size=10)
    for predicted, truth in (([[1, 2, 3], [1, 2, 4]], [[1, 2, 3], [1, 2, 3]]), ([[9, 9, 9]], [[1, 9, 2]])):
        for name in ("accuracy", "exact_match"):
            found[name].update(torch.tensor(predicted), torch.tensor(truth))
        found["accuracy_teacher_forced"].update(torch.tensor(truth), torch.tensor(truth))
        found["loss"].update(torch.full((len(truth), 3), 0.5 * len(truth)))
    values = {name: float(value) for name, value in found.compute().items()}
    assert values == pytest.approx(
        {"accuracy": 6 / 9, "exact_match": 1 / 3, "accuracy_teacher_forced": 1.0, "loss": 7.5 / 9}
    )


def test_accuracy_is_of_all_tokens_and_not_a_mean_over_token_ids() -> None:
    """The library's default would weigh the rare token as much as the frequent one: (8 / 9 + 0) / 2."""
    found = metrics.of_answers(vocab_size=3)["accuracy"]
    found.update(torch.tensor([[1] * 8 + [2, 1]]), torch.tensor([[1] * 9 + [2]]))
    assert float(found.compute()) == pytest.approx(0.8)


def test_one_token_answers() -> None:
    """[B, 1]: each sample is a token."""
    found = metrics.of_answers(vocab_size=5)
    predicted, truth = torch.tensor([[1], [2], [3], [4]]), torch.tensor([[1], [2], [3], [0]])
    for name in ("accuracy", "exact_match"):
        found[name].update(predicted, truth)
        assert float(found[name].compute()) == 0.75


@pytest.mark.parametrize("made", [lambda: metrics.of_text(4), lambda: metrics.of_answers(7)])
def test_counting_goes_on_from_a_saved_state(made: Callable[[], metrics.MetricCollection]) -> None:
    """Also of states that were updated in inference mode, as Lightning does; read without running code."""

    def update(found: metrics.MetricCollection, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        tokens: list[Tensor] = [torch.randint(7, (4, 3), generator=draw) for _ in range(2)]
        values = torch.rand(5, generator=draw)
        for name, metric in found.items():
            if name == "by_position":
                metric.update(values, torch.arange(5) * seed)
            elif "accuracy" in name or name == "exact_match":
                metric.update(*tokens)
            elif name in ("bits_per_byte", "bits_per_word", "word_perplexity"):
                metric.update(values, 3)
            else:
                metric.update(values)

    whole, first, second = made(), made(), made()
    first.persistent(True)
    with torch.inference_mode():
        for found, seed in ((whole, 1), (whole, 2), (first, 1)):
            update(found, seed)
    file = io.BytesIO()
    torch.save(dict(first.state_dict()), file)
    file.seek(0)
    second.persistent(True)
    second.load_state_dict(torch.load(file, weights_only=True))
    with torch.inference_mode():
        update(second, 2)
    assert second.compute() == whole.compute()


def test_nats_are_exact_in_half_precision() -> None:
    logits_BnV, targets_Bn = torch.randn(2, 3, 50).bfloat16(), torch.randint(50, (2, 3))
    found = nats(logits_BnV, targets_Bn)
    expected = -logits_BnV.double().log_softmax(-1).gather(2, targets_Bn[..., None])[..., 0]
    assert found.dtype == torch.float32 and found.shape == (2, 3)
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=1e-6)
    assert nats(logits_BnV.double(), targets_Bn).dtype == torch.float64
