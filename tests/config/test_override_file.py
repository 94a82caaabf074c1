"""Overrides in a file, and that what is written into one comes back as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import QuotedString

from memlab.config import cli, override_file
from memlab.config.checks import check
from memlab.errors import ConfigError

VALUES = [
    "rmt",
    "a b",
    "it's",
    "true",
    "null",
    "Null",
    "x,y",
    "1e-3",
    "a=b",
    "[q]",
    "{q}",
    "back\\slash",
    "end\\",
    "with'quote\\",
    "\\'",
]
VALUES += ["/tmp/a-b.c/d", "/", "//x"]
VALUES += [
    "sqlite:////a/x y.db",
    "http://h:5/x",
    "",
    "on",
    "12",
    "1.5",
    "a:b",
    "über",
    "$HOME",
    "inf",
    "nan",
    "-3",
    "a#b",
]
OTHERS: list[Any] = [[1, "a b", None, True], [], 1e-3, 0.1, 1e300, None, True, False, 3, -2]


@pytest.mark.parametrize("value", [*VALUES, *OTHERS], ids=repr)
def test_hydra_reads_back_what_is_written(value: Any) -> None:
    def plain(read: Any) -> Any:
        if isinstance(read, list):
            return [plain(part) for part in read]
        return read.text if isinstance(read, QuotedString) else read

    (override,) = OverridesParser.create().parse_overrides([override_file.word("k", value)])
    read = plain(override.value())
    assert read == value and type(read) is type(value)


def write(tmp_path: Path, content: str) -> str:
    (tmp_path / "best.yaml").write_text(content)
    return f"experiment_file={tmp_path / 'best.yaml'}"


def test_the_file_stands_before_the_command_line_which_counts_more(tmp_path: Path) -> None:
    word = write(
        tmp_path,
        "model: infini\noptim.lr: 2e-3\ntask: {num_segments: 2, length: 6}\ntrainer.stop_at_accuracy: null\n",
    )
    words = override_file.expand(["task.length=8", word])
    config = cli.compose_checked("train", words, check)
    assert (
        config.model["name"] == "infini"
        and config.optim.lr == 2e-3
        and config.trainer.stop_at_accuracy is None
    )
    assert config.task["length"] == 8 and config.task["num_segments"] == 2
    assert override_file.expand(words) == words, (
        "a process that is started with the same words reads the same"
    )
    assert override_file.expand(["seed=1"]) == ["seed=1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (": :", "is not YAML"),
        ("just words", "has no keys"),
        ("1: 2", "the key 1"),
        ("a.b: 1\na: {b: 2}", "a.b is given twice"),
        ("experiment_file: x", "within such a file"),
    ],
)
def test_a_file_that_is_no_list_of_overrides(content: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        override_file.expand([write(tmp_path, content)])


def test_a_file_that_is_not_there_or_holds_an_unknown_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"experiment_file=.*none\.yaml: No such file"):
        override_file.expand([f"experiment_file={tmp_path / 'none.yaml'}"])
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.rl'"):
        cli.compose_checked("train", override_file.expand([write(tmp_path, "optim.rl: 1")]), check)


def test_yaml_written_by_a_sweep_is_read_as_it_was(tmp_path: Path) -> None:
    overrides = {
        "model": "infini",
        "model.memory": "off",
        "optim.lr": 1.2345678901234567e-05,
        "optim.betas": [0.9, 0.98],
        "seed": 3,
    }
    words = override_file.expand([write(tmp_path, yaml.safe_dump(overrides))])
    config = cli.compose_checked("train", words, check)
    assert (config.model["memory"], config.optim.lr, config.seed) == ("off", 1.2345678901234567e-05, 3)
