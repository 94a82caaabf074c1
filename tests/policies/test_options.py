"""The YAML of a policy is its manual: each option, with the constructor's default; and a line in the docs."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from memlab.config import schema
from memlab.config.paths import config_dir
from memlab.models import choices

DOCS = Path(__file__).parents[2] / "docs" / "POLICIES.md"
NAMES = choices.names("policy")


def test_every_policy_has_a_file_and_a_line() -> None:
    assert {file.stem for file in Path(config_dir(), "policy").glob("*.yaml")} == set(NAMES)
    assert all(f"| `{name}` |" in DOCS.read_text(encoding="utf-8") for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_file_has_every_option_with_its_default(name: str) -> None:
    target = choices.target("policy", name)
    values = OmegaConf.to_container(OmegaConf.load(Path(config_dir(), "policy", f"{name}.yaml")))
    assert isinstance(values, dict) and values.pop("name") == name
    module, _, kind = target.rpartition(".")
    signature = inspect.signature(getattr(importlib.import_module(module), kind).__init__)
    defaults = {k: p.default for k, p in signature.parameters.items() if k not in ("self", "description")}
    assert values == defaults
    accepted = schema.parameters(target)
    assert defaults.keys() == accepted.keys() - set(choices.GIVEN)
    for key, value in values.items():
        schema.check_value(f"policy.{key}", value, accepted[key].annotation)
