"""The suites of `memlab.bench` at small sizes, in this process: what they report,
and that both sides do the same work.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from rich.table import Table
from torch import Tensor, nn

from memlab.bench import check_bench
from memlab.benchmarks import measure, peer_models, peer_names, peers, report, roofline, streaming, sweep
from memlab.benchmarks.peer_models import PEERS, Loss, Peer
from memlab.benchmarks.settings import BenchConfig, PeersConfig
from memlab.config.paths import config_dir
from memlab.errors import ConfigError

SMALL = ["repeats=2", "trainer.threads=1"]


def configured(place: Path, suite: str, *words: str) -> BenchConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check_bench(compose("bench", [f"suite={suite}", f"run_dir={place}", *SMALL, *words]))


def test_a_peer_that_is_our_model_trains_as_ours_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same weights, tokens and optimizer on both sides: the losses are equal, before and after the steps."""

    def build(sizes: PeersConfig, segment_length: int) -> tuple[nn.Module, Loss]:
        model = measure.build("infini", config, sizes, segment_length)

        def loss(tokens_BT: Tensor) -> Tensor:
            inputs, targets = (
                t.unflatten(1, (-1, segment_length)) for t in (tokens_BT[:, :-1], tokens_BT[:, 1:])
            )
            value = measure.loss(model, inputs, targets)
            value.backward()
            return value

        return model, loss

    monkeypatch.setattr(peers, "PEERS", {"twin": Peer("infini", {}, "torch", build, "nothing")})
    config = configured(
        tmp_path,
        "roofline",
        "peers.width=16",
        "peers.heads=2",
        "peers.layers=2",
        "peers.segments=[[3,4],[2,5]]",
    )
    result = peers.run(config.model_copy(update={"suite": "peers"}))
    written = json.loads((tmp_path / "peers.json").read_text())
    assert written["peers"] == result["peers"]
    assert list(written["sizes"]) == ["3 x 4", "2 x 5"]
    medians = []
    for at in written["sizes"].values():
        twin = at["models"]["twin"]
        assert (
            twin["loss"]["ours"] == twin["loss"]["theirs"]
            and twin["loss"]["ours"][1] < twin["loss"]["ours"][0]
        )
        assert twin["parameters"]["ours"] == twin["parameters"]["theirs"]
        ratios = [a / b for a, b in zip(twin["seconds"]["theirs"], twin["seconds"]["ours"], strict=True)]
        assert len(ratios) == 2 and twin["ratio"] == {
            "median": sum(ratios) / 2,
            "min": min(ratios),
            "max": max(ratios),
        }
        assert twin["ceiling"] > twin["ratio"]["median"]
        medians.append(twin["ratio"]["median"])
    assert written["peers"] == {"twin": min(medians)}
    assert "twin" in (tmp_path / "PERFORMANCE.md").read_text()


def test_every_comparison_has_a_name_and_a_module() -> None:
    assert list(PEERS) == list(peer_names.PACKAGES)
    assert {peer.model for peer in PEERS.values()} <= set(measure.names())


@pytest.mark.parametrize("name", PEERS)
def test_the_real_peers_train(name: str, tmp_path: Path) -> None:
    pytest.importorskip(peer_names.PACKAGES[name], reason="pip install 'memlab[peers]'")
    config = configured(
        tmp_path,
        "peers",
        f"peers.models=[{name}]",
        "peers.width=16",
        "peers.heads=2",
        "peers.layers=2",
        "peers.segments=[[3,4]]",
    )
    measured = peers.run(config)["sizes"]["3 x 4"]["models"][name]
    assert measured["loss"]["theirs"][1] < measured["loss"]["theirs"][0]
    ours, theirs = measured["parameters"]["ours"], measured["parameters"]["theirs"]
    assert ours == pytest.approx(theirs, rel=0.2)


def test_peers_that_are_not_there_are_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'infini'"):
        configured(tmp_path, "peers", "peers.models=[infni]")
    monkeypatch.setitem(peer_names.PACKAGES, "infini", "no_such_module")
    for suite in ("peers", "all"):
        with pytest.raises(ConfigError, match=r"no_such_module.*memlab\[peers\]"):
            configured(tmp_path, suite, "peers.models=[infini]")
    assert not list(tmp_path.iterdir())


def test_roofline_counts_the_operations_of_the_matrix_products(tmp_path: Path) -> None:
    """Forward and backward of each linear layer are 6 operations for each weight and token,
    but 4 where the input needs no gradient.
    """
    words = [
        f"roofline.{key}={value}"
        for key, value in {"segments": 2, "segment_length": 8, "width": 16, "layers": 2, "heads": 2}.items()
    ]
    result = roofline.run(configured(tmp_path, "roofline", "roofline.models=[transformer]", *words))
    measured = result["models"]["transformer"]
    weights = 2 * 12 * 16 * 16 + 16 * measure.VOCABULARY
    assert measured["operations"] >= 6 * weights * 2 * 8 > 0.5 * measured["operations"]
    assert measured["share"]["median"] == pytest.approx(
        sum(measured["operations"] / s / result["matmul_flops_per_second"] for s in measured["seconds"]) / 2
    )
    assert json.loads((tmp_path / "roofline.json").read_text())["models"].keys() == {"transformer"}


def test_streaming_reports_length_stream_and_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "FIRST", 16)
    sizes = {
        "few": 2,
        "many": 4,
        "segment_length": 8,
        "tokens": 61,
        "growing_tokens": 30,
        "width": 16,
        "layers": 2,
        "heads": 2,
    }
    names = "streaming.models=[infini,memorizing,rmt_encoder]"
    result = streaming.run(
        configured(
            tmp_path, "streaming", names, *(f"streaming.{key}={value}" for key, value in sizes.items())
        )
    )
    infini, memorizing, encoder = (result["models"][name] for name in ("infini", "memorizing", "rmt_encoder"))
    assert [point["tokens"] for point in infini["stream"]] == [16, 32, 64], (
        "whole segments, and at least what was asked for"
    )
    assert [point["tokens"] for point in memorizing["stream"]] == [16, 32]
    assert len({point["state_bytes"] for point in infini["stream"]}) == 1
    assert memorizing["stream"][0]["state_bytes"] < memorizing["stream"][1]["state_bytes"]
    assert all(point["tokens_per_second"] > 0 for point in infini["stream"])
    assert encoder["token"] is None and infini["token"]["seconds"].keys() == {"early", "late", "segment"}
    for way in ("training", "reading"):
        few, many = (infini["length"][way]["seconds_per_token"][side] for side in ("few", "many"))
        assert infini["length"][way]["ratio"]["max"] == max(m / f for f, m in zip(few, many, strict=True))
    page = (tmp_path / "PERFORMANCE.md").read_text()
    assert "## Cost over length" in page and "memorizing" in page


def test_the_page_is_made_of_all_suites_that_were_measured(tmp_path: Path) -> None:
    for suite in ("streaming", "peers"):
        report.write({"suite": suite, **report.machine()}, Table(), str(tmp_path), [f"## {suite}", ""])
    page = (tmp_path / "PERFORMANCE.md").read_text()
    assert page.index("## peers") < page.index("## streaming") and torch.__version__ in page


def test_a_peer_is_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    import sys
    import warnings

    with peer_models.quiet():
        warnings.warn("old", FutureWarning, stacklevel=1)
        print("words", file=sys.stderr)
    assert capfd.readouterr().err == ""


def test_the_parts_of_a_sweep_are_its_difference_from_the_same_by_hand() -> None:
    times = sweep.Times(began=100.0, trials=[(103.0, 113.0), (113.5, 123.0), (123.25, 133.0)], ended=135.0)
    parts = sweep.parts(times, by_hand=[9.0, 9.0, 9.0])
    assert list(parts.values()) == pytest.approx([3.0, 0.75, 2.25, 2.0])
    assert sum(parts.values()) == pytest.approx(35.0 - 27.0)


def test_a_sweep_that_is_not_there_is_a_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean 'rmt_reverse'"):
        configured(tmp_path, "sweep", "sweep.name=rmt_revers")


@pytest.mark.slow
def test_a_sweep_is_measured_against_the_same_trainings_by_hand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, list[str]]] = []

    def command(place: Path, program: str, words: list[str]) -> tuple[float, float]:
        said.append((program, words))
        return real(place, program, words)

    real = sweep._command
    monkeypatch.setattr(sweep, "_command", command)
    result = sweep.run(configured(tmp_path, "sweep", "sweep.trials=2", "sweep.steps=20"))
    assert (
        json.loads((tmp_path / "sweep.json").read_text()) == result
        and "What a sweep adds" in (tmp_path / "PERFORMANCE.md").read_text()
    )
    assert len(result["by_hand_seconds"]) == len(result["trial_seconds"]) == 2
    assert result["processor_seconds"]["sweep"] > result["processor_seconds"]["by_hand"] > 5
    assert result["ratio"] == pytest.approx(result["sweep_seconds"] / sum(result["by_hand_seconds"]))
    assert sum(result["parts"].values()) == pytest.approx(
        result["sweep_seconds"] - sum(result["by_hand_seconds"])
    )
    trainings = [words for program, words in said[1:] if program == "memlab.train"]
    for words in trainings:
        keys = [word.partition("=")[0] for word in words]
        assert len(set(keys)) == len(keys) and {
            "optim.lr",
            "trainer.max_steps",
            "tracking",
            "tracking.uri",
            "run_dir",
        } <= set(keys)
        assert "tracking.parent_run" not in keys and "trainer.max_steps=20" in words
    assert trainings[0] != trainings[1]
