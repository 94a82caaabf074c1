"""`memlab.bench suite=policies` at small sizes: what it reports, against closed forms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memlab.benchmarks import policies
from memlab.errors import ConfigError
from tests.benchmarks.test_suites import configured

SIZES = {"segment_length": 256, "budget": 300, "width": 16, "layers": 2, "heads": 4, "kv_heads": 2}
ROW = (
    2 * 2 * (2 * 4 * 4 + 4)
)  # bytes of one token in two layers of two heads: keys and values of width 4, position


def test_speed_and_bytes_of_each_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"policies.{key}={value}" for key, value in {**SIZES, "tokens": 2048}.items()]
    result = policies.run(configured(tmp_path, "policies", "policies.names=[full,h2o,streaming]", *words))
    assert list(result["policies"]) == ["full attention", "full", "h2o", "streaming"]
    for found in result["policies"].values():
        assert [point["tokens"] for point in found["points"]] == [1024, 2048]
        assert all(point["tokens_per_second"]["min"] > 0 for point in found["points"])
        assert all(point["used_bytes"] == point["state_bytes"] for point in found["points"])
        assert found["late_over_early"]["median"] > 0
    ends = {name: found["points"][-1] for name, found in result["policies"].items()}
    assert ends["full attention"]["state_bytes"] == 2048 * 2 * 2 * 2 * 4 * 4 + 2 * 8
    assert ends["full"]["state_bytes"] == 2048 * ROW + 2 * 8
    assert ends["streaming"]["state_bytes"] == 300 * ROW + 2 * 8
    assert ends["h2o"]["state_bytes"] == 300 * (ROW + 2 * 2 * 4) + 2 * 8
    assert ends["streaming"]["peak_bytes"] == ends["streaming"]["state_bytes"] + 256 * 2 * 2 * 2 * 4 * 4
    streaming = result["policies"]["streaming"]
    assert (
        streaming["state_over_full"]
        == ends["streaming"]["state_bytes"] / ends["full attention"]["state_bytes"]
    )
    assert json.loads((tmp_path / "policies.json").read_text())["policies"].keys() == ends.keys()
    assert "h2o" in capsys.readouterr().out
    assert "| streaming |" in (tmp_path / "PERFORMANCE.md").read_text()


def test_quick_is_small_and_a_wrong_name_is_found_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "QUICK", {**policies.QUICK, "tokens": 1024, "segment_length": 512})
    result = policies.run(configured(tmp_path, "policies", "policies.names=[l2]", "policies.quick=true"))
    assert (result["tokens"], result["width"], result["budget"]) == (1024, 64, 256)
    with pytest.raises(ConfigError, match="policy=h3o: there is no such choice"):
        configured(tmp_path, "policies", "policies.names=[h3o]")
