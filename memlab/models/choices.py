"""The classes that a configuration's choices name. Imports no torch, so a wrong name is reported at once.

    layer_memory   a file of `memlab/memories/`, or a list of them from the bottom layer to the top
    tokens         a file of `memlab/memory_tokens/`
    policy         a file of `memlab/policies/`: what the layers with layer_memory=cached keep

The class of a file is the one with the file's name: `TransformerXL` in `transformer_xl.py`. A class of your
own is named with its module, `my_module.MyMemory`.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from memlab.errors import ConfigError, suggestion

Group = Literal["layer_memory", "tokens", "policy"]
_PACKAGES: dict[Group, str] = {
    "layer_memory": "memories",
    "tokens": "memory_tokens",
    "policy": "policies",
}
BACKBONE = "memlab.models.backbone.Backbone"
Target = Literal["q", "k", "v", "out", "ffn"]  # projections of a block that can have an adapter
Train = Literal["all", "memory", "lora"]  # what is trained of a model
GIVEN = ("vocab_size", "memories", "description", "policy")  # constructor arguments that are not keys


@dataclass(frozen=True)
class Choices:
    """Dotted names of classes: one layer memory for each layer, from the bottom, and the memory tokens.

    And the policy, None = the model has none.
    """

    memories: tuple[str, ...]
    tokens: str
    policy: str | None = None


def choose(values: Mapping[str, Any]) -> Choices:
    """The classes that the keys `layer_memory`, `tokens`, `policy`, `context` and `layers` of a model name.

    Raises:
        ConfigError: there is no such memory, or the layers cannot be divided among the list.
    """
    named = values["layer_memory"]
    pattern = [named] if isinstance(named, str) else list(named)
    layers = values["layers"]
    if not pattern or layers % len(pattern):
        raise ConfigError(
            f"model.layer_memory={pattern} has {len(pattern)} entries, and model.layers={layers} cannot be "
            "divided evenly among them; each entry is for the same number of layers, from bottom to top"
        )
    if values.get("context") == "full":  # layers without a memory look at the whole document
        pattern = ["full" if name == "attention" else name for name in pattern]
    each = layers // len(pattern)
    memories = tuple(target("layer_memory", name) for name in pattern for _ in range(each))
    policy = values.get("policy")
    return Choices(
        memories,
        target("tokens", values["tokens"]),
        None if policy is None else target("policy", policy["name"]),
    )


def bounded(values: Mapping[str, Any], policy: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a model with a bounded cache instead of full attention; its weights are the same.

    Args:
        values: of `model`.
        policy: its `name` and options; for layers that have a bounded cache already, another policy.

    Raises:
        ConfigError: no layer has full attention.
    """
    named = values["layer_memory"]
    pattern = [named] if isinstance(named, str) else list(named)
    whole = {"full", "cached"} | ({"attention"} if values.get("context") == "full" else set())
    if not whole & set(pattern):
        raise ConfigError(
            f"policy={policy['name']} reads layers with full attention through a bounded cache, and this "
            f"model has none: model.layer_memory={named}, model.context={values.get('context')}. Train it "
            "with layer_memory=full or layer_memory=cached"
        )
    changed = ["cached" if name in whole else name for name in pattern]
    others = {key: value for key, value in values.items() if key != "context" or "attention" in changed}
    return {**others, "layer_memory": changed, "policy": dict(policy)}


def target(group: Group, name: str) -> str:
    """The dotted name of the class that a choice names.

    Raises:
        ConfigError: there is no such choice.
    """
    if "." in name:
        return name
    package = _PACKAGES[group]
    file = _folder(package) / f"{name}.py"
    found = _class_of(file) if file.is_file() else None
    if found is None:
        known = names(group)
        near = suggestion(name, known)
        key = group if group == "policy" else f"model.{group}"
        raise ConfigError(f"{key}={name}: there is no such choice.{near} There are: {', '.join(known)}")
    return f"memlab.{package}.{name}.{found}"


def names(group: Group) -> Sequence[str]:
    """The choices that memlab has."""
    return sorted(file.stem for file in _folder(_PACKAGES[group]).glob("*.py") if _class_of(file))


def _folder(package: str) -> Path:
    return Path(__file__).resolve().parent.parent / package


def _class_of(file: Path) -> str | None:
    """The class that has the file's name, except for capitals and underscores; one with a base."""
    own_name = file.stem.replace("_", "")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    classes = (node.name for node in tree.body if isinstance(node, ast.ClassDef) and node.bases)
    return next((name for name in classes if name.replace("_", "").lower() == own_name), None)
