"""What values a configuration key may take.

The annotations of a model's or a task's constructor are the schema of its YAML: `memory_tokens: Positive`
both documents and checks. They are read from the source text, so that a mistake is reported in a second,
before torch is imported.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError

from memlab.bounds import (
    Dropout,
    Fraction,
    NonNegative,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Seed,
    Share,
)
from memlab.errors import ConfigError
from memlab.models import choices

_BUILTINS: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "tuple": tuple,
}
_NAMES: dict[str, Any] = {
    "Positive": Positive,
    "NonNegative": NonNegative,
    "PositiveFloat": PositiveFloat,
    "NonNegativeFloat": NonNegativeFloat,
    "Fraction": Fraction,
    "Dropout": Dropout,
    "Seed": Seed,
    "Share": Share,
    "Literal": Literal,
    "Any": Any,
}


@dataclass(frozen=True)
class Parameter:
    """One argument of a constructor: what it accepts, as a type and in the source's words, and whether it is
    needed.
    """

    annotation: Any
    words: str
    required: bool = True


def load(target: str) -> Any:
    """The class that a dotted path names."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def parameters(target: str) -> dict[str, Parameter]:
    """The constructor arguments of the class that a dotted path names, read from its source without importing
    it.

    Arguments that an `__init__` passes on as `**name` are those of the class's base.

    Raises:
        ConfigError: there is no such module or class, or no `__init__` in it or in the class it imports as
            its base.
    """
    module, _, class_name = target.rpartition(".")
    try:
        spec = importlib.util.find_spec(module) if module else None
    except ModuleNotFoundError:
        spec = None
    if spec is None or spec.origin is None:
        raise ConfigError(f"_target_: {target!r} is not a class in a module that can be imported")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    found = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name), None
    )
    if found is None:
        raise ConfigError(f"_target_: {spec.origin} has no class {class_name!r}")
    own: dict[str, Parameter] = {}
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            positional = node.args.args[1:]
            fixed = len(positional) - len(node.args.defaults)
            own = {a.arg: _parameter(a, required=i < fixed) for i, a in enumerate(positional)}
            both = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
            own |= {a.arg: _parameter(a, required=default is None) for a, default in both}
            if node.args.kwarg is None:
                return own
    base = ast.unparse(found.bases[0]) if found.bases else ""
    for node in tree.body:  # the base is a class of this file, or one that it imports
        if isinstance(node, ast.ClassDef) and node.name == base:
            return parameters(f"{module}.{base}") | own
        if isinstance(node, ast.ImportFrom) and base in [a.name for a in node.names]:
            return parameters(f"{node.module}.{base}") | own
    raise ConfigError(f"_target_: {target} has no __init__ whose arguments could be read")


def _parameter(argument: ast.arg, required: bool) -> Parameter:
    words = ast.unparse(argument.annotation) if argument.annotation else "Any"
    if argument.arg in choices.GIVEN:  # not from the configuration
        return Parameter(Any, words, required)
    try:  # the source is an importable module's own annotation, evaluated with the few names above
        return Parameter(eval(words, {"__builtins__": _BUILTINS}, _NAMES), words, required)
    except NameError as error:
        raise ConfigError(
            f"argument {argument.arg!r} is annotated {words!r}: {error.name!r} is not one of "
            f"{sorted(_NAMES | _BUILTINS)}"
        ) from None


def check_value(key: str, value: Any, annotation: Any) -> Any:
    """`value`, if it is of the annotated type and within its bounds (an int is accepted for a float).

    Raises:
        ConfigError: it is not; the message names the key, the value and what is allowed.
    """
    try:
        finite = ConfigDict(allow_inf_nan=False)
        return TypeAdapter(annotation, config=finite).validate_python(value, strict=True)
    except ValidationError as error:
        # each once, in order
        reasons = dict.fromkeys(e["msg"][0].lower() + e["msg"][1:] for e in error.errors())
        raise ConfigError(f"{key}={value!r}: {', or '.join(reasons)}") from None
