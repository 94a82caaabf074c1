"""Copy pretrained weights into a model: each tensor is read once, and used once."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from memlab import ram
from memlab.errors import ConfigError, first_line
from memlab.models.base import Model
from memlab.models.encoder import Encoder
from memlab.models.pretrained import families
from memlab.models.pretrained.describing import class_token, folder, identity_of, parameters, source
from memlab.models.pretrained.parts import Part
from memlab.models.pretrained.run import Exported, Run
from memlab.models.pretrained.source import Source

DTYPES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes
_BY_ID = ("embed.weight", "head.weight", "head.bias")  # a row for each id
# The parameters of a backbone that no memory has added.
_PLAIN = re.compile(
    r"(embed|learned_positions|embed_norm|norm|head)\..*|distance_biases"
    r"|blocks\.\d+\.(memory\.norm|memory\.attention|memory_norm|ffn_norm|ffn)\..*"
)


def check_room(values: Mapping[str, Any], copies: int = 1) -> None:
    """Refuse weights that cannot fit into memory, before any of them is read.

    Args:
        values: the keys of `model`.
        copies: of the weights: 1 to read text, 4 to train all of them (gradients and Adam's two moments).

    Raises:
        ConfigError: they are larger than what is free.
    """
    number = max(4, DTYPES[values["dtype"]]) * copies  # a model is built in float32
    count = f"{parameters(values) / 1e6:,.0f} million parameters"
    what = f"loading {count}" if copies == 1 else f"training {count}"
    advice = "use a smaller model" if copies == 1 else "use a smaller model, or train only the memory"
    ram.check(parameters(values) * number, f"backbone.path={values['path']}: {what}", advice)


def load(model: Model, values: Mapping[str, Any]) -> None:
    """Fill a model with the weights of its pretrained backbone, in the type `model.dtype`.

    Of a model that memlab trained, all weights are taken that this model has too. Other parameters, which a
    memory adds, begin as they are: gates as `gate_init` says, memory tokens at the scale of the embedding.

    Args:
        model: as composed from `values`, on any device.
        values: the keys of `model`, described (`describe`).

    Raises:
        ConfigError: the path has another model than the description's; a tensor is missing, left over, or of
            another shape; or a file cannot be read.
    """
    if values["family"] == "bert" and not isinstance(model, Encoder):
        raise ConfigError(
            f"backbone.path={values['path']} is a bert, which reads in both directions, and the model "
            "as configured only backwards; use model=rmt_encoder"
        )
    found = source(values["path"], values.get("revision"), weights=True)
    check_identity(values, found)
    shapes = found.shapes()
    model.to(getattr(torch, values["dtype"]))
    if isinstance(found, Run | Exported):
        begun = _of_run(model, found, shapes, values)
    else:
        fill(model.backbone, found, shapes, families.FAMILIES[values["family"]], values)
        begun = False
    if not begun:
        model.tokens.begin_beside(model.backbone.embed.weight, class_token(folder(values)))


def check_identity(values: Mapping[str, Any], found: Source) -> None:
    """Whether a source has the weights that a configuration was made with.

    Raises:
        ConfigError: it has others.
    """
    known = identity_of(values)
    assert known is not None
    if known.identity.startswith("commit:"):
        return  # what a commit has never changes
    if (now := found.fingerprint()) != known.identity:
        raise ConfigError(
            f"backbone.path={values['path']} has other weights than this configuration was made with: {now}, "
            f"expected {known.identity}"
        )


@torch.no_grad()
def fill(
    backbone: nn.Module,
    found: Source,
    shapes: Mapping[str, tuple[int, ...]],
    family: Any,
    values: Mapping[str, Any],
) -> None:
    """Copy a family's tensors into a backbone.

    Raises:
        ConfigError: see `load`.
    """
    ours = dict(backbone.named_parameters())
    names = {name.removeprefix(family.PREFIX): name for name in shapes}
    parts: list[Part] = [
        part for part in family.parts(values) if not part.may_lack or part.theirs[0] in names
    ]
    wanted = {name for part in parts for name in part.names}
    copies = {"lm_head.weight"} if values["tied_head"] else set()  # some store the embedding twice
    left = [n for n in names if n not in wanted | copies and not re.fullmatch(family.UNUSED, n)]
    if left:
        raise _misfit(values, "these tensors have no place in our blocks", left)
    if lacking := wanted - names.keys():
        raise _misfit(values, "these tensors are missing", lacking)
    for part in parts:
        if part.ours not in ours:
            raise _misfit(values, f"layers of {values['layer_memory']} have no place for these", part.theirs)
        tensors = [_read(found, names[name], values) for name in part.theirs]
        tensors = [tensor.T if part.transposed else tensor for tensor in tensors]
        if part.rows and [len(tensor) for tensor in tensors] != list(part.rows):
            raise _misfit(values, f"expected {list(part.rows)} rows in these tensors", part.theirs)
        value = tensors[0] if len(tensors) == 1 else torch.cat(tensors)
        if part.added is not None:
            value = value + _read(found, names[part.added], values)[0]
        put(ours[part.ours], value, part.ours, values)
    missed = {n for n in ours if _PLAIN.fullmatch(n)} - {part.ours for part in family.parts(values)}
    assert not missed, f"no part fills {missed}"


def put(target: Tensor, value: Tensor, name: str, values: Mapping[str, Any]) -> None:
    """Copy a value into a parameter. An embedding may have more rows, for ids that only the task has: they
    begin as the mean of the others.

    Raises:
        ConfigError: the shapes differ otherwise.
    """
    rows = len(value) if name.endswith(_BY_ID) and len(value) < len(target) else len(target)
    if target[:rows].shape != value.shape:
        raise _misfit(values, f"{name} has the shape {list(value.shape)}, expected {list(target.shape)}")
    target[:rows].copy_(value)
    if rows < len(target):
        target[rows:] = target[:rows].mean(0)


@torch.no_grad()
def _of_run(
    model: Model, found: Source, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, Any]
) -> bool:
    """Copy every parameter of a model of memlab's that this one has too; returns whether memory tokens are
    among them.
    """
    ours = dict(model.named_parameters())
    plain = [name for name in ours if _PLAIN.fullmatch(name.removeprefix("backbone."))]
    if lacking := set(plain) - shapes.keys():
        raise _misfit(values, "these weights are missing", lacking)
    both = [name for name in ours if name in plain or shapes.get(name) == tuple(ours[name].shape)]
    for name in both:
        put(ours[name], _read(found, name, values), name, values)
    copies = {"backbone.head.weight"} if values["tied_head"] else set()
    left = sorted(shapes.keys() - set(both) - copies)
    if unused := [name for name in left if _PLAIN.fullmatch(name.removeprefix("backbone."))]:
        raise _misfit(values, "these weights have no place in our blocks", unused)
    if left:
        print(
            f"memlab: backbone.path={values['path']}: what its own memory had learned has no place in this "
            f"model ({_listed(left)})",
            file=sys.stderr,
        )
    return any(name.startswith("tokens.") for name in both)


def _read(found: Source, name: str, values: Mapping[str, Any]) -> Tensor:
    try:
        tensor: Tensor = found.read(name)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise _misfit(values, f"{name} cannot be read ({first_line(error)})") from None
    return tensor


def _misfit(values: Mapping[str, Any], what: str, names: Iterable[str] = ()) -> ConfigError:
    listed = f": {_listed(sorted(names))}" if names else ""
    return ConfigError(f"backbone.path={values['path']}, read as {values['family']}: {what}{listed}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
