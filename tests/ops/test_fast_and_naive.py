"""Every fast operation equals the naive one beside it: values and all gradients.

Operations are found by being there: a function in `memlab/ops/` beside which `X_naive` stands, and every one
that applies an autograd function of its own. One that has no `X_naive`, or no cases here, fails.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import memlab.ops

FILES = sorted(file for file in Path(memlab.ops.__path__[0]).glob("*.py") if file.stem != "__init__")
Case = tuple[Any, ...]  # arguments; those of float64 get gradients unless they are named in NO_GRADIENT
# Arguments whose gradient an operation leaves out on purpose, as its docstring says.
NO_GRADIENT = {
    "rotate": {"cos", "sin"},
    "attend_nearest": {"keys_BGPK", "values_BGPK"},
    "mean_spectrum": {"attention_BGTL", "mean_BGLF"},
    "backward_scores": {"parameters_Pn", "features_BGLF"},
    "received": {"q_BHTK", "k_BGLK", "weight_T"},
}
SUMS = {"received"}  # fp32 or wider, whatever the inputs are


def operations() -> dict[str, Path]:
    """Name and file of each public function of `memlab/ops/` that is fast, or is said to be."""
    found = {}
    for file in FILES:
        functions = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.FunctionDef)]
        for node in functions:
            applies = any(isinstance(n, ast.Attribute) and n.attr == "apply" for n in ast.walk(node))
            if node.name.endswith("_naive") or applies:
                found[node.name.removesuffix("_naive")] = file
    return found


OPERATIONS = operations()


def load(name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    module = importlib.import_module(f"memlab.ops.{OPERATIONS[name].stem}")
    return getattr(module, name), getattr(module, f"{name}_naive")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def elu_plus_one() -> list[Case]:
    edges = torch.tensor([-40.0, -1.0, -1e-9, 0.0, 1e-9, 1.0, 40.0], dtype=torch.float64)
    return [(normal(2, 3, 5, 7),), (edges,), (normal(0, 3),), (normal(1),)]


def rotate() -> list[Case]:
    def angles(*shape: int) -> tuple[Tensor, Tensor]:
        half = 3 * normal(*shape, seed=1)
        angle = torch.cat([half, half], dim=-1)
        return angle.cos(), angle.sin()

    return [
        (normal(2, 3, 5, 6), *angles(5, 3)),
        (normal(2, 3, 5, 6), *angles(2, 1, 5, 3)),  # positions of each document
        (normal(2, 1, 1, 2), *angles(1, 1)),
        (normal(2, 3, 0, 4), *angles(0, 2)),  # a piece of no tokens
    ]


def project_twice() -> list[Case]:
    shapes = [(2, 5, 6, 9, 3), (1, 1, 1, 2, 1), (3, 4, 5, 7, 0), (3, 4, 5, 7, 7), (2, 0, 6, 9, 3)]
    return [(normal(b, t, d), normal(p, d, seed=1), normal(p, seed=2), first) for b, t, d, p, first in shapes]


def distance_attention() -> list[Case]:
    from memlab.ops.distance_attention import distances

    found: list[Case] = []
    for b, h, t, size, k in [
        (2, 3, 4, 0, 5),
        (1, 1, 1, 0, 2),
        (3, 2, 1, 6, 4),
        (2, 4, 5, 3, 2),
        (2, 2, 0, 5, 4),
    ]:
        for ahead in (False, True):
            keys, width = size + t, len(distances(t, size + t, ahead, torch.device("cpu")))
            mask = torch.ones(t, keys, dtype=torch.bool).tril(size + (2 if ahead else 0))
            of_documents = mask.repeat(b, 1, 1, 1)
            of_documents[0, :, :, : size // 2] = False
            for masked in (mask, of_documents, mask[None, None]):
                q, k_, v = normal(b, h, t, k), normal(b, h, keys, k, seed=1), normal(b, h, keys, k, seed=2)
                r, u, v_ = normal(h, width, k, seed=3), normal(h, k, seed=4), normal(h, k, seed=5)
                found.append((q, k_, v, r, u, v_, masked, ahead))
    return found


def attend_nearest() -> list[Case]:
    found: list[Case] = []
    for heads, groups in [(4, 4), (4, 2), (3, 1)]:
        for queries, parts, rows, k in [
            (6, 3, 17, 4),
            (6, 1, 5, 9),
            (3, 3, 1, 1),
            (1, 1, 9, 9),
            (4, 2, 0, 3),
        ]:
            low_BS = torch.stack([torch.arange(parts) % (rows + 1), torch.zeros(parts, dtype=torch.long)])
            high_BS = torch.stack([torch.full((parts,), rows), torch.arange(parts) * rows // parts])
            memory = [normal(2, groups, rows, 5, seed=seed) for seed in (1, 2)]
            found.append((normal(2, heads, queries, 5), *memory, low_BS, high_BS, k))
    found.append((normal(2, 4, 0, 5), *[normal(2, 2, 6, 5)] * 2, *[torch.full((2, 1), 6)] * 2, 3))
    return found


def gated_delta_rule() -> list[Case]:
    found: list[Case] = []
    shapes = [
        (2, 4, 2, 37, 3, 5),
        (1, 1, 1, 1, 2, 2),
        (2, 3, 1, 65, 4, 2),
        (3, 2, 2, 32, 1, 1),
        (2, 2, 1, 0, 3, 4),
    ]
    for i, (b, h, g, t, k, v) in enumerate(shapes):
        keys = torch.nn.functional.normalize(normal(b, g, t, k, seed=1), dim=-1)
        decay, beta = -normal(b, g, t, seed=3).abs(), normal(b, g, t, seed=4).sigmoid()
        start = normal(b, g, k, v, seed=5)
        found.append((normal(b, h, t, k), keys, normal(b, g, t, v, seed=2), decay, beta, start, i != 3))
    return found


def received() -> list[Case]:
    found: list[Case] = []
    for heads, groups in [(4, 4), (4, 2), (3, 1)]:
        for queries, keys in [(5, 9), (1, 1), (4, 4), (0, 3)]:
            q, k = normal(2, heads, queries, 6), normal(2, groups, keys, 6, seed=1)
            causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            by_head = causal & (normal(2, groups, 1, keys, seed=2) > 0) | (torch.arange(keys) == 0)
            found += [(q, k, causal[None, None], None), (q, k, by_head, normal(queries, seed=3))]
    return found


def mean_spectrum() -> list[Case]:
    found: list[Case] = []
    sizes = [(2, 3, 5, 8, 4, 3), (1, 1, 1, 4, 2, 1), (2, 1, 3, 6, 2, 2), (1, 2, 4, 2, 2, 0)]
    for b, g, keys, n_fft, hop, frames in sizes:
        weights = normal(b, g, n_fft + (frames - 1) * hop, keys)
        found.append((weights, normal(b, g, keys, n_fft // 2 + 1, seed=1), n_fft, hop, 0.9))
    return found


def backward_scores() -> list[Case]:
    from memlab.ops.backward_network import count

    found: list[Case] = []
    for candidates, each, g, length, features, hidden in [
        (1, 2, 2, 5, 4, 3),
        (3, 2, 1, 4, 3, 7),
        (2, 1, 3, 1, 2, 1),
    ]:
        there = torch.ones(candidates * each, g, length, dtype=torch.bool)
        for masked in (there, there & (normal(*there.shape, seed=3) > 0)):
            parameters = normal(candidates, count(features, hidden))
            found.append((parameters, normal(*there.shape, features, seed=1), masked, hidden))
    return found


def chunk_weights() -> list[Case]:
    shapes = [(2, 3, 5), (1,), (4, 1), (2, 0, 3)]
    return [(normal(*s), 2 * normal(*s, seed=1), normal(*s, seed=2)) for s in shapes]


def linear_memories() -> list[Case]:
    found: list[Case] = []
    for b, h, c, n, k in [(2, 3, 2, 3, 4), (1, 1, 1, 1, 2), (2, 1, 3, 5, 3)]:
        rows = [0.5 * normal(b, h, c, n, k, seed=seed) for seed in (1, 2)]
        rates = [normal(b, h, c, n, seed=seed) for seed in (3, 4)]
        step = 0.2 * normal(b, h, c, n, seed=5).sigmoid()
        found.append((*rows, *rates, step, normal(b, h, k, k, seed=6), normal(b, h, k, k, seed=7)))
    return found


CASES: dict[str, Callable[[], list[Case]]] = {
    make.__name__: make
    for make in (
        elu_plus_one,
        rotate,
        project_twice,
        distance_attention,
        attend_nearest,
        gated_delta_rule,
        mean_spectrum,
        backward_scores,
        received,
        chunk_weights,
        linear_memories,
    )
}
EACH = pytest.mark.parametrize("name", OPERATIONS)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_has_an_operation_with_its_naive_form(file: Path) -> None:
    names = [name for name, where in OPERATIONS.items() if where == file]
    assert names, f"{file.name} has no X_naive beside an X"
    for name in names:
        fast, naive = load(name)
        assert list(inspect.signature(fast).parameters) == list(inspect.signature(naive).parameters)
        assert CASES[name](), f"{name} has no cases in this file"


def leaves(name: str, case: Case) -> tuple[list[Any], dict[str, Tensor]]:
    """The arguments as fresh leaves, and those that get gradients."""
    arguments = [a.detach().clone() if isinstance(a, Tensor) else a for a in case]
    parameters = list(inspect.signature(load(name)[0]).parameters)
    wanted = {
        parameter: a
        for parameter, a in zip(parameters, arguments, strict=False)
        if isinstance(a, Tensor) and a.is_floating_point() and parameter not in NO_GRADIENT.get(name, ())
    }
    return arguments, {parameter: a.requires_grad_() for parameter, a in wanted.items()}


def tensors(outputs: Any) -> list[Tensor]:
    """The outputs that are compared: of `attend_nearest`, which says more than its naive form, the first."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [output for output in outputs if isinstance(output, Tensor)]


def gradients(
    outputs: Sequence[Tensor], leaves: dict[str, Tensor], weights: str = "random"
) -> dict[str, Tensor]:
    live = [y for y in outputs if y.requires_grad]
    if not live:  # from nothing comes nothing
        return {parameter: torch.zeros_like(leaf) for parameter, leaf in leaves.items()}
    incoming = [normal(*y.shape, seed=7 + i).to(y.dtype) for i, y in enumerate(live)]
    if weights == "one number":  # as `sum` hands it on: one number in memory, of stride 0
        incoming = [torch.ones((), dtype=y.dtype).expand_as(y) for y in live]
    if weights == "transposed":
        incoming = [strided(w) for w in incoming]
    found = torch.autograd.grad(
        live, list(leaves.values()), incoming, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))


def strided(x: Tensor) -> Tensor:
    """The same values, not contiguous: every second number of a larger tensor, or swapped dimensions."""
    roomy = x.new_zeros(*x.shape, 2)
    roomy[..., 0] = x
    y = roomy[..., 0]
    return (
        y.transpose(-1, -2).clone(memory_format=torch.contiguous_format).transpose(-1, -2)
        if y.dim() > 2
        else y
    )


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor], **tolerance: float) -> None:
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], msg=lambda m, n=name: f"{n}: {m}", **tolerance
        )


@EACH
@pytest.mark.parametrize("weights", ["random", "one number", "transposed"])
def test_values_and_gradients(name: str, weights: str) -> None:
    fast, naive = load(name)
    for case in CASES[name]():
        found = []
        for operation in (fast, naive):
            arguments, wanted = leaves(name, case)
            outputs = tensors(operation(*arguments))
            found.append((outputs, gradients(outputs, wanted, weights)))
        (outputs, actual), (right, expected) = found
        assert len(outputs) == len(right)
        for y, e in zip(outputs, right, strict=True):
            torch.testing.assert_close(y, e, rtol=1e-10, atol=1e-10)
        assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@EACH
def test_inputs_that_are_not_contiguous(name: str) -> None:
    """The same bits: no operation may read memory as if it were in order."""
    fast, _ = load(name)
    for case in CASES[name]():
        found = []
        for change in (lambda x: x, strided):
            arguments, wanted = leaves(name, case)
            changed = [change(a) if isinstance(a, Tensor) and a.is_floating_point() else a for a in arguments]
            outputs = tensors(fast(*changed))
            found.append((outputs, gradients(outputs, wanted)))
        (outputs, actual), (right, expected) = found
        for y, e in zip(outputs, right, strict=True):
            torch.testing.assert_close(y, e, rtol=1e-12, atol=1e-12)
        assert_close(actual, expected, rtol=1e-12, atol=1e-12)


@EACH
def test_gradients_when_only_one_input_wants_one(name: str) -> None:
    fast, naive = load(name)
    for case in CASES[name]():
        for parameter in leaves(name, case)[1]:
            found = []
            for operation in (fast, naive):
                arguments, wanted = leaves(name, case)
                for other in wanted.keys() - {parameter}:
                    wanted[other].requires_grad_(False)
                found.append(gradients(tensors(operation(*arguments)), {parameter: wanted[parameter]}))
            assert_close(*found, rtol=1e-10, atol=1e-10)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_fp32_inputs_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Near the naive form in fp32, and gradients of the inputs' own type."""
    fast, naive = load(name)
    for case in CASES[name]():
        if name == "attend_nearest":  # which rows are nearest is not continuous: let all be found
            case = (*case[:-1], max(1, case[1].shape[2]))
        case = tuple(a.float() if isinstance(a, Tensor) and a.is_floating_point() else a for a in case)
        arguments, wanted = leaves(name, case)
        exact = tensors(naive(*arguments))
        expected = gradients(exact, wanted)
        arguments, wanted = leaves(name, case)
        with torch.autocast("cpu", dtype=dtype):
            rough = tensors(fast(*arguments))
        actual = gradients(rough, wanted)
        for y, e in zip(rough, exact, strict=True):
            torch.testing.assert_close(y.float(), e, rtol=0.05, atol=0.15)
        for parameter, gradient in actual.items():
            assert gradient.dtype == torch.float32
            scale = float(expected[parameter].abs().max()) if expected[parameter].numel() else 0.0
            torch.testing.assert_close(gradient, expected[parameter], rtol=0.05, atol=0.02 + 0.05 * scale)


@EACH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_outputs_have_the_inputs_type(name: str, dtype: torch.dtype) -> None:
    fast, _ = load(name)
    case = CASES[name]()[0]
    arguments = [a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in case]
    expected = torch.promote_types(dtype, torch.float32) if name in SUMS else dtype
    for y in tensors(fast(*arguments)):
        assert y.dtype == expected and y.isfinite().all()


def test_rotated_rows_keep_their_type_under_angles_of_fp32() -> None:
    fast, naive = load("rotate")
    x, cos, sin = CASES["rotate"]()[0]
    x = x.bfloat16().requires_grad_()
    y = fast(x, cos.float(), sin.float())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, naive(x, cos.float(), sin.float()))
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.dtype == torch.bfloat16


@EACH
def test_without_gradient_it_is_the_same(name: str) -> None:
    fast, _ = load(name)
    for case in CASES[name]():
        arguments, _ = leaves(name, case)
        with torch.no_grad():
            alone = tensors(fast(*arguments))
        for y, e in zip(alone, tensors(fast(*arguments)), strict=True):
            assert not y.requires_grad and torch.equal(y, e)
