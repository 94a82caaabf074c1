"""What values a configuration key may take.

The annotations of a model's or a task's constructor are the schema of its YAML: `memory_tokens: Positive`
both documents and checks. They are read from the source text, so that a mistake is reported in a second,
before torch is imported.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from dataclasses import dataclass
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
from memlab.config import trust
from memlab.errors import ConfigError
from memlab.models import choices

_TYPES: dict[str, Any] = {
    "int": int,
    "float": float,
    "str": str,
    "bool": bool,
    "list": list,
    "dict": dict,
    "tuple": tuple,
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


def load(target: str, base: type | None = None) -> Any:
    """The class or function that a dotted path names. Its module is imported, so `trust.check` comes first.

    Args:
        base: the class that it has to derive from; None = any.

    Raises:
        ConfigError: it does not, or it is abstract.
    """
    module, _, name = target.rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if base is not None:
        if not (isinstance(found, type) and issubclass(found, base)):
            raise ConfigError(f"{target} does not derive from {base.__module__}.{base.__qualname__}")
        if inspect.isabstract(found):
            raise ConfigError(f"{target} is abstract; name a class that derives from it")
    return found


def parameters(target: str) -> dict[str, Parameter]:
    """The constructor arguments of the class that a dotted path names, read from its source without importing
    it.

    Arguments that an `__init__` passes on as `**name` are those of the class's base.

    Raises:
        ConfigError: there is no such module or class, or no `__init__` in it or in the class it imports as
            its base.
    """
    module, _, class_name = target.rpartition(".")
    file = trust.source(module)
    if file is None:
        raise ConfigError(f"_target_: {target!r} is not a class in a module that can be imported")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = next(
        (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == class_name), None
    )
    if found is None:
        raise ConfigError(f"_target_: {file} has no class {class_name!r}")
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
    try:
        return Parameter(Any if argument.annotation is None else _type(argument.annotation), words, required)
    except _UnknownError as error:
        raise ConfigError(
            f"argument {argument.arg!r} is annotated {words!r}: {str(error)!r} is not one of {sorted(_TYPES)}"
        ) from None


class _UnknownError(Exception):
    """A part of an annotation that no configuration can have; it is the message."""


def _type(node: ast.expr) -> Any:
    """The type that an annotation describes. It is read, not evaluated.

    Raises:
        _UnknownError: it has other parts than the names above, `|`, `[]`, and the values of a `Literal`.
    """
    match node:
        case ast.Name(id=name) if name in _TYPES:
            return _TYPES[name]
        case ast.Constant(value=None):
            return None
        case ast.Constant(value=value) if value is ...:
            return ...
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _type(left) | _type(right)
        case ast.Subscript(value=of, slice=inside):
            parts = inside.elts if isinstance(inside, ast.Tuple) else [inside]
            if isinstance(of, ast.Name) and of.id == "Literal":
                return Literal[tuple(_value(part) for part in parts)]
            return _type(of)[tuple(_type(part) for part in parts)]
    raise _UnknownError(ast.unparse(node))


def _value(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise _UnknownError(ast.unparse(node)) from None


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
