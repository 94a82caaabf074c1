"""The schema of a class's YAML is read from the annotations of its constructor, as text,
and says what a value may be.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memlab import bounds
from memlab.config import schema
from memlab.errors import ConfigError

MODULE = """
import torch_that_is_not_there
from memlab.bounds import Positive
from {base} import Grandparent

class Parent(Grandparent):
    def __init__(self, width: Positive, **rest): ...

class Child(Parent):
    def __init__(self, slots: Positive, mode: Literal["a", "b"] = "a", *, rate: float | None, **rest): ...

class Heir(Child):
    pass

class Odd:
    def __init__(self, x: Mystery): ...
"""
BASE = "class Grandparent:\n    def __init__(self, depth: int): ...\n"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "base_of_schema_test.py").write_text(BASE)
    (tmp_path / "module_of_schema_test.py").write_text(MODULE.format(base="base_of_schema_test"))
    monkeypatch.syspath_prepend(str(tmp_path))
    return "module_of_schema_test"


def words(target: str) -> dict[str, str]:
    return {name: p.words for name, p in schema.parameters(target).items()}


def test_arguments_of_a_class_and_of_those_it_hands_the_rest_to(module: str) -> None:
    """Without importing the module, whose import would fail."""
    own = {"slots": "Positive", "mode": "Literal['a', 'b']", "rate": "float | None"}
    assert words(f"{module}.Child") == {"depth": "int", "width": "Positive"} | own
    assert words(f"{module}.Heir") == words(f"{module}.Child")
    assert module not in sys.modules


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{module}.Absent", "has no class 'Absent'"),
        ("no_such_module_here.Thing", "not a class in a module"),
        ("Thing", "not a class in a module"),
        ("{module}.Odd", "'x' is annotated 'Mystery'"),
    ],
)
def test_what_cannot_be_read_is_told(module: str, target: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        schema.parameters(target.format(module=module))


@pytest.mark.parametrize(
    ("value", "annotation"),
    [
        (3, bounds.Positive),
        (0, bounds.NonNegative),
        (1, bounds.PositiveFloat),
        (0.5, bounds.Dropout),
        (None, bounds.Positive | None),
    ],
)
def test_values_that_fit(value: Any, annotation: Any) -> None:
    assert schema.check_value("key", value, annotation) == value


@pytest.mark.parametrize(
    ("value", "annotation", "why"),
    [
        (0, bounds.Positive, "greater than or equal to 1"),
        (True, bounds.Positive, "integer"),
        (2.0, bounds.Positive, "integer"),
        ("3", bounds.Positive, "integer"),
        (None, bounds.Positive, "integer"),
        (-0.1, bounds.NonNegativeFloat, "greater than or equal to 0"),
        (1.0, bounds.Dropout, "less than 1"),
        (1.1, bounds.Fraction, "less than or equal to 1"),
        ([1, 0], list[bounds.Positive] | None, "greater than or equal to 1"),
    ],
)
def test_values_that_do_not_fit_are_named_with_the_reason(value: Any, annotation: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=r"model\.key=") as error:
        schema.check_value("model.key", value, annotation)
    assert why in str(error.value) and "\n" not in str(error.value)


def test_checking_a_configuration_imports_no_torch() -> None:
    code = (
        "import sys, memlab.config.cli, memlab.config.checks, memlab.train, memlab.bench; sys.exit('torch' "
        "in sys.modules or 'mlflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
