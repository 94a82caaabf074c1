"""Shared parts of the suites: models at given sizes, interleaved measurements, rates of matrix products."""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from memlab.benchmarks.settings import BenchConfig
from memlab.config.checks import model_options
from memlab.config.compose_model import model_names, model_values
from memlab.errors import ConfigError
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.terminal.tables import is_live
from memlab.training.build import on_gpu

VOCABULARY = 256
Work = Callable[[], Any]


class Sizes(Protocol):
    """Sizes of a model in a measurement."""

    @property
    def width(self) -> int: ...

    @property
    def layers(self) -> int: ...

    @property
    def heads(self) -> int: ...


def names() -> list[str]:
    """All presets of models: those of `configs/model/`, and the user's own in --config-dir."""
    return model_names()


def build(name: str, config: BenchConfig, sizes: Sizes, segment_length: int, **more: Any) -> Model:
    """A model with its preset's values, or those of the configuration, at the sizes of a measurement.

    The number of layers is rounded up to a multiple of the length of the preset's list of layer memories.

    Args:
        segment_length: also the length of caches.
        more: options that this measurement sets; those that the model does not have are ignored.

    Raises:
        ConfigError: there is no such preset, or its values do not go together with these sizes.
    """
    try:
        values = config.model if name == config.model["name"] else model_values(name)
    except ConfigError as error:
        raise ConfigError(f"{config.suite}.models: {error}") from None
    pattern = values["layer_memory"]
    shared = len(pattern) if isinstance(pattern, list) else 1
    own = {
        "width": sizes.width,
        "layers": -(-sizes.layers // shared) * shared,
        "heads": sizes.heads,
        "mem_len": segment_length,
        "dropout": 0.0,
        **more,
    }
    options = model_options(values)
    torch.manual_seed(config.seed)
    try:
        model = compose({**values, **{key: own[key] for key in own.keys() & options.keys()}}, VOCABULARY)
    except ConfigError as error:
        raise ConfigError(f"{config.suite}: model={name} at the sizes of this suite: {error}") from None
    return model.train()


def device_of(config: BenchConfig) -> torch.device:
    return torch.device("cuda" if on_gpu(config) else "cpu")


def tokens(config: BenchConfig, *shape: int) -> Tensor:
    """Uniform token ids, the same for the same seed, on the device of the measurement."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(config.seed)).to(
        device_of(config)
    )


def loss(model: Model, tokens_BSN: Tensor, targets_BSN: Tensor) -> Tensor:
    """Mean cross-entropy of all targets (for an encoder, of the last target of each segment), and the
    auxiliary loss.
    """
    output = model(tokens_BSN)
    targets_BSN = targets_BSN[..., -1:] if model.answers_once else targets_BSN
    value = F.cross_entropy(output.logits.flatten(0, 2), targets_BSN.flatten())
    return value if output.auxiliary is None else value + output.auxiliary.mean()


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """The same optimizer for all models that are measured."""
    return torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)


def training_step(model: Model, tokens_BSN: Tensor, targets_BSN: Tensor | None = None) -> Work:
    """Forward pass, backward pass and optimizer step on the next-token loss; the result is the loss.

    Args:
        targets_BSN: the next tokens; None = those of `tokens_BSN`, and after the last token the first.
    """
    adam = optimizer(model)
    targets = (
        tokens_BSN.flatten(1).roll(-1, dims=1).view_as(tokens_BSN) if targets_BSN is None else targets_BSN
    )

    def step() -> Tensor:
        value = loss(model, tokens_BSN, targets)
        value.backward()
        adam.step()
        adam.zero_grad()
        return value.detach()

    return step


def seconds(work: Work, device: torch.device) -> float:
    """Seconds of doing some work once, including what it started on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


def environment() -> dict[str, str]:
    """The environment of a command in another directory, so that it finds the same memlab."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def progress(turns: Sequence[int], description: str) -> Iterable[int]:
    """A bar on a terminal, nothing in a file."""
    return track(turns, description=description, transient=True, disable=not is_live(Console()))


def by_turns(
    sides: Mapping[str, Work], repeats: int, device: torch.device, description: str, warm_up: int = 2
) -> dict[str, list[float]]:
    """Seconds of each side's work, interleaved, so that other load on the machine affects all sides alike."""
    found: dict[str, list[float]] = {side: [] for side in sides}
    for repeat in progress(range(warm_up + repeats), description):
        for side, work in sides.items():
            taken = seconds(work, device)
            if repeat >= warm_up:
                found[side].append(taken)
    return found


def matmul_rate(
    rows: int, width: int, ffn_width: int, device: torch.device, repeats: int = 5
) -> dict[str, float]:
    """FLOP/s of plain matrix products at the shapes of a model's linear layers, fp32; medians."""
    rates = {}
    for name, (inner, out) in {
        "qkv": (width, 3 * width),
        "out": (width, width),
        "ffn, in": (width, ffn_width),
        "ffn, out": (ffn_width, width),
    }.items():
        x, w = torch.randn(rows, inner, device=device), torch.randn(inner, out, device=device)
        once = 2 * rows * inner * out
        times = min(200, max(1, int(2e9 if device.type == "cpu" else 2e12) // once))

        def products(x: Tensor = x, w: Tensor = w, times: int = times) -> None:
            for _ in range(times):
                x @ w

        taken = [seconds(products, device) for _ in range(repeats + 1)][1:]
        rates[f"{name}: {rows} x {inner} x {out}"] = once * times / statistics.median(taken)
    return rates


def most_time(work: Work, operations: int = 5) -> dict[str, float]:
    """The largest shares of the time by operation, without the time of operations that it calls."""
    with torch.profiler.profile() as profiler:
        work()
    own = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in own)
    return {event.key: event.self_cpu_time_total / whole for event in own[:operations]}
