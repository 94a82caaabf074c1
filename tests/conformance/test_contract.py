"""What every model must keep, for every file in configs/model/ and every value of its named options.

There is no list to edit.

The tests speak to models through the contract alone (`memlab/models/base.py`), so a new YAML is tested by
being there.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from memlab.config import schema
from memlab.config.paths import config_dir
from memlab.layers.state import State
from memlab.models.base import Decoder, Model
from memlab.training import truncation

VOCAB = 13
SMALL = {"layers": 2, "width": 16, "heads": 2, "memory_tokens": 3, "dropout": 0.0}
FILES = sorted(Path(config_dir(), "model").glob("*.yaml"))
SHAPES = [(2, 3, 5), (3, 1, 4), (1, 4, 1), (2, 2, 7)]  # B, S, N


def cases() -> list[Any]:
    """Each file as it is, and with one option at a time changed: words (`Literal` arguments), switches,
    and shared key-value heads.
    """
    found = []
    for file in FILES:
        config, arguments = OmegaConf.load(file), schema.parameters(OmegaConf.load(file)._target_)
        changes: list[dict[str, Any]] = [{}, {"kv_heads": 1}]
        for key, parameter in arguments.items():
            words = get_args(parameter.annotation) if get_origin(parameter.annotation) is Literal else ()
            switch = (not config[key],) if parameter.annotation is bool else ()
            changes += [{key: value} for value in (*words, *switch) if value != config[key]]
        for change in changes:
            name = "-".join([file.stem, *(f"{key}={value}" for key, value in change.items())])
            # what a control takes away must not come in by a cache
            if "memory" in change and "mem_len" in arguments:
                change["mem_len"] = 0
            found.append(pytest.param(file, change, id=name))
    return found


def build(file: Path, options: dict[str, Any], dtype: torch.dtype = torch.float64, **more: Any) -> Model:
    torch.manual_seed(1)
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    arguments = schema.parameters(config["_target_"])
    values = {**{k: v for k, v in config.items() if k in arguments}, **options, **more}
    values |= {k: v for k, v in SMALL.items() if k in arguments and k not in more}
    model: Model = schema.load(config["_target_"])(vocab_size=VOCAB, **values)
    return model.to(dtype).eval()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if {"model", "file"} & set(metafunc.fixturenames):
        metafunc.parametrize(("file", "options"), cases())


@pytest.fixture
def model(file: Path, options: dict[str, Any]) -> Model:
    return build(file, options)


def tokens(b: int, s: int, n: int) -> Tensor:
    return torch.randint(VOCAB, (b, s, n))


def carried(model: Model, b: int) -> State:
    """A state in mid-document."""
    return model(tokens(b, 2, 3)).state.detach()


def assert_same_state(one: State, other: State) -> None:
    assert type(one) is type(other)
    for a, b in zip(one.tensors(), other.tensors(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_yaml_is_the_constructors_arguments(path: Path) -> None:
    config: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(path))  # type: ignore[assignment]
    arguments = schema.parameters(config["_target_"])
    assert config["name"] == path.stem
    assert set(config) - {"_target_", "name", "bptt_depth"} == set(arguments) - {"vocab_size"}
    assert path.read_text().startswith("# "), "the YAML is the manual: its first line says what the model is"
    assert all(p.words != "Any" for p in arguments.values()), "every argument says what it accepts"


@pytest.mark.parametrize("calls", [[14], [1, 2, 5, 6], [4, 8, 2], [3, 0, 10, 1]], ids=str)
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
            closed = state if isinstance(state, State) else closed
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
            torch.cat([p.logits for p in pieces if isinstance(p.state, State)], 1), whole.logits.flatten(1, 2)
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


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("start", ["fresh", "carried"])
def test_parallel_is_recurrent(model: Model, shape: tuple[int, int, int], start: str) -> None:
    """Outputs, final state and all parameter gradients of the parallel form are those of the fold over
    segments.
    """
    if model.parallel is None:
        pytest.skip("no parallel form")
    x, (b, s, n) = tokens(*shape), shape
    weights = torch.randn(b, s, n, VOCAB, dtype=torch.float64)
    results = []
    for form in (model.recurrent, model.parallel):
        torch.manual_seed(2)
        state = model.init_state(b) if start == "fresh" else carried(model, b)
        output = form(x, state)
        loss = (output.logits * weights).sum() + sum(
            t.square().sum() for t in output.state.tensors() if t.is_floating_point()
        )
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        results.append((output, gradients))
    (one, one_gradients), (other, other_gradients) = results
    close(one.logits, other.logits)
    assert_same_state(one.state, other.state)
    for name, a, b_ in zip(dict(model.named_parameters()), one_gradients, other_gradients, strict=True):
        assert (a is None) == (b_ is None), name
        if a is not None and b_ is not None:
            torch.testing.assert_close(a, b_, rtol=1e-10, atol=1e-10)


def test_no_state_is_the_initial_state(model: Model) -> None:
    x = tokens(2, 2, 5)
    with_none, with_initial = model(x), model(x, model.init_state(2))
    assert torch.equal(with_none.logits, with_initial.logits)
    assert_same_state(with_none.state, with_initial.state)


def test_reset_starts_a_row_anew_and_leaves_the_others(model: Model, options: dict[str, Any]) -> None:
    if options.get("memory") == "shuffled":
        pytest.skip("this control reads other rows' memory: that is what it is for")
    state, x = carried(model, 3), tokens(3, 2, 4)
    rows = torch.tensor([False, True, False])
    mixed = model(x, state.reset(rows, model.init_state(3))).logits
    close(mixed[[0, 2]], model(x, state).logits[[0, 2]])
    close(mixed[1], model(x[1:2]).logits[0])


def test_a_document_is_read_alike_in_any_company(model: Model, options: dict[str, Any]) -> None:
    """Rows that read document after document, in steps with carried state: each document's logits are those
    of it alone.

    Rows begin documents at different segments, also in the middle of a step and twice in one; a full-depth
    gradient within a step too.
    """
    if options.get("memory") == "shuffled":
        pytest.skip("this control reads other rows' memory: that is what it is for")
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


@pytest.mark.parametrize("depth", [0, 1, 2, None])
def test_gradient_horizon(model: Model, depth: int | None) -> None:
    """The loss of the last segment reaches the embeddings of the k segments before it, and exactly none
    earlier.

    Each segment has token ids of its own, so rows of the embedding's gradient tell the segments apart.
    """
    s, n = 4, 3
    x = torch.arange(s * n).view(1, s * n)
    reach = 0  # how far this model sends gradient at all
    for k in (None, depth):
        model.zero_grad()
        logits = truncation.read(model, x, [n] * s, depth=k, wanted=[False] * (s - 1) + [True]).logits
        answers = logits.shape[1] // s  # an encoder gives one for a segment
        F.cross_entropy(logits[0, -answers:], torch.arange(answers)).backward()
        size = model.embed.weight.grad[: s * n].view(s, n, -1).abs().amax(dim=(1, 2)).flip(0)  # type: ignore[index]
        assert size[0] > 0
        if k is None:
            reach = max(distance for distance in range(s) if size[distance] > 0)
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


@pytest.mark.parametrize("pieces", [[7], [1] * 7, [3, 4], [1, 5, 1], [2, 2, 3]], ids=str)
def test_pieces_of_a_segment(model: Model, pieces: list[int]) -> None:
    """begin, extend in pieces of any size, close: the segment read at once."""
    if not isinstance(model, Decoder):
        pytest.skip("an encoder has no open segment")
    state, x = carried(model, 2), tokens(2, 1, 7)
    whole = model(x, state)
    open, logits = model.begin(state), []
    for piece in x[:, 0].split(pieces, dim=1):
        part, open = model.extend(piece, open)
        logits.append(part)
    close(torch.cat(logits, dim=1), whole.logits[:, 0])
    assert_same_state(model.close(open), whole.state)
    assert open.nbytes > state.nbytes


def test_bf16_stays_near_fp32(file: Path, options: dict[str, Any]) -> None:
    model = build(file, options, torch.float32)
    x = tokens(2, 3, 5)
    exact = model(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x).logits
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_overfits_one_batch(file: Path, options: dict[str, Any]) -> None:
    model = build(file, options, torch.float32).train()
    # all tokens differ, so even a model without memory can tell the positions apart
    x = torch.randperm(12).view(2, 2, 3)
    y = tokens(2, 2, 3) if isinstance(model, Decoder) else tokens(2, 2, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = F.cross_entropy(model(x).logits.flatten(0, 2), y.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_memory_is_what_solves_a_memory_task(file: Path, options: dict[str, Any]) -> None:
    """Say in segment 2 what segment 1 showed: learned with the carried state; without it, chance,
    and chance for who carries nothing.
    """
    model = build(file, options, torch.float32).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

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
    x, shown = sample(256)
    with torch.no_grad():
        with_memory = (model(x).logits[:, 1, 0].argmax(-1) == shown).float().mean()
        without = (model(x[:, 1:]).logits[:, 0, 0].argmax(-1) == shown).float().mean()
    assert without < 0.4
    knows = model.carries and options.get("memory") != "shuffled"
    assert with_memory > 0.95 if knows else with_memory < 0.4
