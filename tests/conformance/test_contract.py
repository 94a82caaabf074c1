"""What every model must keep: every preset in configs/model/, every composition in compositions/model/, the
example of CONTRIBUTING.md, and every value of their named options. There is no list to edit.

The tests speak to models through the contract alone (`memlab/models/base.py`), so a new YAML is tested by
being there. A file as it is gets all of them; with an option changed, it gets those that read and compare
numbers, at fewer shapes.
"""

from __future__ import annotations

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from memlab.config import schema
from memlab.config.compose_model import model_values
from memlab.config.paths import config_dir
from memlab.layers.state import State
from memlab.models import choices
from memlab.models.base import Model, ModelState
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from memlab.training import truncation
from tests.contributing import examples

VOCAB = 13
SMALL = {"width": 16, "heads": 2, "memory_tokens": 3, "dropout": 0.0, "ffn_width": 24}
COMPOSITIONS = Path(__file__).parent / "compositions"
EXAMPLE = examples()  # a folder with the module and its YAML
sys.path.append(str(EXAMPLE))

# What a test is run with beside a model: for a file as it is, and with an option changed.
SPLITS = ([[14], [1, 2, 5, 6], [4, 8, 2], [3, 0, 10, 1]], [[3, 0, 10, 1]])
SHAPES = (
    [
        (shape, start)
        for shape in ((2, 3, 5), (3, 1, 4), (1, 4, 1), (2, 2, 7))
        for start in ("fresh", "carried")
    ],
    [((2, 3, 5), "carried"), ((3, 1, 4), "fresh")],
)  # (B, S, N)
PIECES = ([[7], [1] * 7, [3, 4], [1, 5, 1], [2, 2, 3]], [[1, 4, 2]])
DEPTHS = ([0, 1, 2, None], [1])
BESIDE = {"calls": SPLITS, "shape": SHAPES, "pieces": PIECES, "depth": DEPTHS}


@functools.cache
def files() -> dict[str, tuple[Path, Path | None]]:
    """Name to YAML file and the folder that `--config-dir` would name; None = memlab's own."""
    found: dict[str, tuple[Path, Path | None]] = {}
    for folder, own in ((Path(config_dir()), None), (COMPOSITIONS, COMPOSITIONS), (EXAMPLE, EXAMPLE)):
        found |= {file.stem: (file, own) for file in sorted((folder / "model").glob("*.yaml"))}
    return found


@functools.cache
def values(name: str) -> dict[str, Any]:
    """The composed and checked keys of a model."""
    return model_values(name, own=files()[name][1])


@functools.cache
def options(name: str) -> tuple[dict[str, Any], ...]:
    """A file as it is, and with one option of its parts changed at a time: words, switches, shared heads."""
    model = values(name)
    chosen = choices.choose(model)
    arguments = {"memory": Literal["on", "off", "shuffled"]}
    for part in (*dict.fromkeys(chosen.memories), chosen.tokens):
        arguments |= {key: parameter.annotation for key, parameter in schema.parameters(part).items()}
    if "attention" in model["layer_memory"] and files()[name][1] is None:
        arguments["context"] = Literal["segment", "full"]
    changes: list[dict[str, Any]] = [{}]
    if files()[name][1] is None:
        changes += [{"kv_heads": 1}]
        layers = example(name, ()).backbone.memories
        has_positions = any(memory.description.positions != "none" for memory in layers)
        positions = ("rope", "transformer_xl", "none") if has_positions else ()
        changes += [{"positions": word} for word in positions if word != model["positions"]]
    for key, annotation in arguments.items():
        words = get_args(annotation) if get_origin(annotation) is Literal else ()
        switch = (not model.get(key, False),) if annotation is bool else ()
        changes += [{key: value} for value in (*words, *switch) if value != model.get(key)]
    return tuple(change for change in changes if possible(model, change))


def possible(model: dict[str, Any], change: dict[str, Any]) -> bool:
    """Not what the model refuses with a message of its own, which is tested elsewhere."""
    without_distances = model["layer_memory"] in ("cached", "titans_mac")
    distances = change.get("positions") == "transformer_xl" and without_distances
    return not distances and not (change.get("same_length") and model["tokens"] != "none")


def build(name: str, changed: dict[str, Any], dtype: torch.dtype = torch.float64) -> Model:
    torch.manual_seed(1)
    model = values(name)
    small = {key: value for key, value in SMALL.items() if key in model}
    if isinstance(model["layer_memory"], str):
        small["layers"] = 2
    if "mem_len" in model:
        small["mem_len"] = 6
    return compose({**model, **small, **changed}, VOCAB).to(dtype).eval()


@functools.cache
def example(name: str, changed: tuple[tuple[str, Any], ...]) -> Model:
    """To be asked what it is."""
    return build(name, dict(changed))


def only(which: Callable[[Model], bool]) -> Callable[[Any], Any]:
    """A test is for the models of which this is true."""

    def mark(test: Any) -> Any:
        test.only = which
        return test

    return mark


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`model`, `file`: every file with every option; `whole`: every file as it is."""
    wanted = set(metafunc.fixturenames)
    if not wanted & {"name", "whole"}:
        return
    beside = next((key for key in BESIDE if key in wanted), None)
    as_it_is = "whole" in wanted
    which = getattr(metafunc.function, "only", None)
    found = []
    for name in files():
        for changed in options(name):
            if (as_it_is and changed) or (
                which is not None and not which(example(name, tuple(changed.items())))
            ):
                continue
            label = "-".join([name, *(f"{key}={value}" for key, value in changed.items())])
            if beside is None:
                found.append(pytest.param(*([name] if as_it_is else [name, changed]), id=label))
                continue
            for value in BESIDE[beside][1 if changed else 0]:
                found.append(pytest.param(name, changed, value, id=f"{label}-{value}"))
    keys = ["whole"] if as_it_is else ["name", "changed"]
    metafunc.parametrize(keys + ([beside] if beside else []), found)


@pytest.fixture
def model(name: str, changed: dict[str, Any]) -> Model:
    return build(name, changed)


def tokens(b: int, s: int, n: int) -> Tensor:
    return torch.randint(VOCAB, (b, s, n))


def carried(model: Model, b: int) -> ModelState:
    """A state in mid-document."""
    return model(tokens(b, 2, 3)).state.detach()


def assert_same_state(one: State, other: State) -> None:
    assert type(one) is type(other)
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_yaml_says_what_it_is() -> None:
    """The YAML is the manual: its first comment says what the model is, and its name is the file's."""
    for name, (file, _) in files().items():
        assert OmegaConf.load(file).get("name", None) == name or OmegaConf.load(file).model.name == name
        comment = next(line for line in file.read_text().splitlines() if not line.startswith("# @"))
        assert comment.startswith("# "), file


def test_every_option_says_what_it_accepts() -> None:
    for group in ("layer_memory", "tokens"):
        for name in choices.names(group):  # type: ignore[arg-type]
            for key, option in schema.parameters(choices.target(group, name)).items():  # type: ignore[arg-type]
                assert option.words != "Any" and (not option.required or key in (*choices.GIVEN, "width")), (
                    name,
                    key,
                )


def test_stream_reads_the_same_however_it_is_split(model: Model, calls: list[int]) -> None:
    """Segments of 4 from several calls of `stream`: logits and states are those of the fold,
    the last segment's those of a shorter one.
    """
    x = tokens(2, 1, 14)[:, 0]
    whole = model.recurrent(x[:, :12].unflatten(1, (3, 4)), model.init_state(2))
    short = model.segment(x[:, 12:], whole.state)
    pieces, state, closed = [], None, None
    for part in x.split(calls, dim=1):
        for piece in model.stream(part, state, segment_length=4):
            assert piece.logits.shape[1] <= 4 and not piece.logits.requires_grad
            pieces.append(piece)
            state = piece.state
            closed = state if isinstance(state, ModelState) else closed
    assert closed is not None and state is not None
    assert_same_state(closed, whole.state)  # type: ignore[arg-type]
    assert state.read == 2 and state.nbytes > 0  # type: ignore[union-attr]
    if isinstance(model, Decoder):
        close(
            torch.cat([p.logits for p in pieces], 1), torch.cat([whole.logits.flatten(1, 2), short.logits], 1)
        )
        assert_same_state(model.close(state), short.state)  # type: ignore[arg-type]
    else:
        close(
            torch.cat([p.logits for p in pieces if isinstance(p.state, ModelState)], 1),
            whole.logits.flatten(1, 2),
        )
        close(pieces[-1].logits, short.logits)


def test_causality(model: Model) -> None:
    """Nothing before token t moves when token t does; token t's own logits do.

    An encoder is causal by segments.
    """
    x = tokens(2, 3, 4)
    if not isinstance(model, Decoder):
        before = model(x).logits
        for s in range(3):
            after = model(torch.cat([x[:, :s], (x[:, s:] + 1) % VOCAB], dim=1)).logits
            close(after[:, :s], before[:, :s])
            assert (after[:, s] - before[:, s]).abs().max() > 1e-6
        return
    before = model(x).logits.flatten(1, 2)
    for t in range(12):
        moved = x.flatten(1).clone()
        moved[:, t] = (moved[:, t] + 1) % VOCAB
        after = model(moved.unflatten(1, (3, 4))).logits.flatten(1, 2)
        close(after[:, :t], before[:, :t])
        assert (after[:, t] - before[:, t]).abs().max() > 1e-6


@only(lambda model: model.parallel is not None)
def test_parallel_is_recurrent(model: Model, shape: tuple[tuple[int, int, int], str]) -> None:
    """Outputs, final state and all parameter gradients of the parallel form are those of the fold over
    segments.
    """
    (b, s, n), start = shape
    x = tokens(b, s, n)
    weights = torch.randn(b, s, n, VOCAB, dtype=torch.float64)
    results = []
    for form in (model.recurrent, model.parallel):
        torch.manual_seed(2)
        state = model.init_state(b) if start == "fresh" else carried(model, b)
        output = form(x, state)
        loss = (output.logits * weights).sum() + sum(
            t.square().sum() for t in output.state.tensors() if t.is_floating_point()
        )
        if output.auxiliary is not None:
            loss = loss + (output.auxiliary * torch.linspace(1, 2, b * s).view(b, s)).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        results.append((output, gradients))
    (one, one_gradients), (other, other_gradients) = results
    close(one.logits, other.logits)
    assert_same_state(one.state, other.state)
    assert (one.auxiliary is None) == (other.auxiliary is None) == (not model.has_auxiliary_loss)
    if one.auxiliary is not None and other.auxiliary is not None:
        close(one.auxiliary, other.auxiliary)
    for name, a, b_ in zip(dict(model.named_parameters()), one_gradients, other_gradients, strict=True):
        assert (a is None) == (b_ is None), name
        if a is not None and b_ is not None:
            torch.testing.assert_close(a, b_, rtol=1e-10, atol=1e-10)


def test_no_state_is_the_initial_state(model: Model) -> None:
    x = tokens(2, 2, 5)
    with_none, with_initial = model(x), model(x, model.init_state(2))
    assert torch.equal(with_none.logits, with_initial.logits)
    assert_same_state(with_none.state, with_initial.state)


@only(lambda model: model.memory != "shuffled")  # which reads other rows' memory
def test_reset_starts_a_row_anew_and_leaves_the_others(model: Model) -> None:
    state, x = carried(model, 3), tokens(3, 2, 4)
    rows = torch.tensor([False, True, False])
    mixed = model(x, state.reset(rows, model.init_state(3))).logits
    close(mixed[[0, 2]], model(x, state).logits[[0, 2]])
    close(mixed[1], model(x[1:2]).logits[0])


@only(lambda model: model.memory != "shuffled")  # which reads other rows' memory
def test_a_document_is_read_alike_in_any_company(model: Model) -> None:
    """Rows that read document after document, in steps with carried state: each document's logits are those
    of it alone.

    Rows begin documents at different segments, also in the middle of a step and twice in one; a full-depth
    gradient within a step too.
    """
    # segments of the documents of each row; steps of 3 segments
    lengths, n = [[4, 2, 1, 2], [1, 3, 3, 2], [9]], 4
    documents = [[tokens(1, s, n) for s in row] for row in lengths]
    rows_BSN = torch.cat([torch.cat(row, dim=1) for row in documents])
    begins_BS = torch.zeros(3, 9, dtype=torch.bool)
    for b, row in enumerate(lengths):
        begins_BS[b, [sum(row[:d]) for d in range(len(row))]] = True
    state, seen = None, []
    for step in range(0, 9, 3):
        part_BT, begins = rows_BSN[:, step : step + 3].flatten(1), begins_BS[:, step : step + 3]
        output = truncation.read(model, part_BT, [n] * 3, state, begins_BS=begins)
        state = output.state
        seen.append(output.logits.unflatten(1, (3, -1)))
    together_BSNV = torch.cat(seen, dim=1)
    for b, row in enumerate(documents):
        at = 0
        for document in row:
            alone = model(document).logits
            close(together_BSNV[b, at : at + document.shape[1]].flatten(0, 1), alone[0].flatten(0, 1))
            at += document.shape[1]

    whole = gradients(
        model,
        lambda: (
            truncation.read(model, rows_BSN.flatten(1), [n] * 9, begins_BS=begins_BS).logits.square().sum()
        ),
    )
    apart = gradients(
        model, lambda: sum(model(document).logits.square().sum() for row in documents for document in row)
    )  # type: ignore[arg-type,return-value]
    for name, one, other in zip(dict(model.named_parameters()), whole, apart, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")  # type: ignore[misc]


def gradients(model: Model, loss: Callable[[], Tensor]) -> list[Tensor]:
    return list(
        torch.autograd.grad(loss(), list(model.parameters()), allow_unused=True, materialize_grads=True)
    )


def test_gradient_horizon(name: str, changed: dict[str, Any], depth: int | None) -> None:
    """The loss of the last segment reaches the embeddings of the k segments before it, and exactly none
    earlier.

    Each segment has token ids of its own, so rows of the embedding's gradient tell the segments apart.
    """
    model = build(name, {**changed, "tied_head": False})  # the head's gradient is not of the inputs
    s, n = 4, 3
    x = torch.arange(s * n).view(1, s * n)
    reach = 0  # how far this model sends gradient at all
    for k in (None, depth):
        model.zero_grad()
        logits = truncation.read(model, x, [n] * s, depth=k, wanted=[False] * (s - 1) + [True]).logits
        answers = logits.shape[1] // s  # an encoder gives one for a segment
        F.cross_entropy(logits[0, -answers:], torch.arange(answers)).backward()
        size = model.backbone.embed.weight.grad[: s * n].view(s, n, -1).abs().amax(dim=(1, 2)).flip(0)  # type: ignore[index]
        assert size[0] > 0
        if k is None:
            reach = max(distance for distance in range(s) if size[distance] > 0)
    assert (reach > 0) == (model.sends_gradient and model.memory == "on")  # alone in a batch, if shuffled
    allowed = reach if depth is None else min(depth, reach)
    assert all(size[: allowed + 1] > 0)
    assert all(size[allowed + 1 :] == 0)


def test_learned_initial_state_receives_gradient(model: Model) -> None:
    learned = [t for t in model.init_state(2).tensors() if t.requires_grad]
    model(tokens(2, 3, 3)).logits[:, -1].square().sum().backward()
    if learned:
        at_start = {id(p) for t in learned for p in [t._base if t._base is not None else t]}
        gradients = [p.grad for p in model.parameters() if id(p) in at_start]
        assert gradients and all(g is not None and g.abs().max() > 0 for g in gradients)


def test_state_bytes_are_constant_unless_said_otherwise(model: Model) -> None:
    sizes = [model(tokens(2, s, 3)).state.nbytes for s in (1, 2, 6)]
    assert all(t.shape[:1] == (2,) for t in model(tokens(2, 1, 3)).state.tensors()), "batch first"
    if model.state_grows:
        assert sizes[0] < sizes[1] < sizes[2]
    else:
        assert sizes[0] == sizes[1] == sizes[2]
    assert sizes[0] > 0 or not model.carries


def test_saved_state_goes_on_in_mid_document(model: Model) -> None:
    state, x = carried(model, 2), tokens(2, 2, 3)
    file = io.BytesIO()
    torch.save(state.to_dict(), file)
    file.seek(0)
    restored = model.init_state(2).from_dict(torch.load(file, weights_only=True))
    assert torch.equal(model(x, state).logits, model(x, restored).logits)


def test_split_at_any_boundary(model: Model) -> None:
    x = tokens(2, 5, 3)
    whole = model(x)
    for cut in range(1, 5):
        first = model(x[:, :cut])
        second = model(x[:, cut:], first.state)
        close(torch.cat([first.logits, second.logits], dim=1), whole.logits)
        assert_same_state(second.state, whole.state)


@only(lambda model: not model.answers_once)  # an encoder has no open segment
def test_pieces_of_a_segment(model: Model, pieces: list[int]) -> None:
    """begin, extend in pieces of any size, close: the segment read at once."""
    state, x = carried(model, 2), tokens(2, 1, 7)
    whole = model(x, state)
    open, logits = model.begin(state), []
    for piece in x[:, 0].split(pieces, dim=1):
        part, open = model.extend(piece, open)
        logits.append(part)
    close(torch.cat(logits, dim=1), whole.logits[:, 0])
    assert_same_state(model.close(open), whole.state)
    # a layer that reads row after row holds nothing of the open segment but its state
    held = any(not memory.only_causal for memory in model.backbone.memories)
    assert open.nbytes > state.nbytes or (not held and open.nbytes == state.nbytes)


def test_bf16_stays_near_fp32(whole: str) -> None:
    model = build(whole, {}, torch.float32)
    x = tokens(2, 3, 5)
    exact = model(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x).logits
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_overfits_one_batch(whole: str) -> None:
    model = build(whole, {}, torch.float32).train()
    # all tokens differ, so even a model without memory can tell the positions apart
    x = torch.randperm(12).view(2, 2, 3)
    y = tokens(2, 2, 3) if isinstance(model, Decoder) else tokens(2, 2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(x).logits.flatten(0, 2), y.flatten())
        if loss.item() < 0.05:
            return
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pytest.fail(f"after 60 steps the loss is {loss.item()}")


def test_memory_is_what_solves_a_memory_task(whole: str) -> None:
    """Say in segment 2 what segment 1 showed: learned with the carried state. Without it, and for a model
    that carries nothing, chance.
    """
    model = build(whole, {}, torch.float32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)

    def sample(b: int) -> tuple[Tensor, Tensor]:
        shown = torch.randint(8, (b,))
        return torch.stack(
            [torch.stack([shown, torch.full_like(shown, 10)], 1), torch.full((b, 2), 11)], 1
        ), shown

    for _ in range(250):
        x, shown = sample(32)
        loss = F.cross_entropy(model(x).logits[:, 1, 0], shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.02:
            break
    x, shown = sample(256)
    with torch.no_grad():
        with_memory = (model(x).logits[:, 1, 0].argmax(-1) == shown).float().mean()
        without = (model(x[:, 1:]).logits[:, 0, 0].argmax(-1) == shown).float().mean()
    assert without < 0.4
    assert with_memory > 0.95 if model.carries else with_memory < 0.4
