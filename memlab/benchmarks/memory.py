"""Memory and time of a training step over the number of segments, with and without recomputing activations.

A step is a forward and a backward pass of the next-token loss, as in `memlab.train`
(`memlab/training/truncation.py`). Memory is the peak of bytes allocated by torch beyond those before the
step, which are parameters, their gradients and the tokens. On a processor torch's profiler records each
allocation; on a GPU the allocator itself counts.

Seconds are those of passes without a profiler, at the largest number of segments, interleaved.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor

from memlab.benchmarks import measure
from memlab.benchmarks.report import machine, spread, write
from memlab.benchmarks.settings import BenchConfig
from memlab.evaluation.loss import nats
from memlab.models.base import Model
from memlab.reports import curves
from memlab.training import truncation
from memlab.training.build import on_gpu

WAYS = ("none", "block", "segment")


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table, return peak bytes and seconds by model, and write `memory.{json,md,png}`."""
    sizes = config.memory
    device = torch.device("cuda" if on_gpu(config) else "cpu")
    models = {
        name: measure.build(name, config, sizes, sizes.segment_length).to(device)
        for name in sizes.models or measure.names()
    }
    by_model = {name: weigh(model, config, device) for name, model in models.items()}
    result = {
        "suite": "memory",
        **sizes.model_dump(exclude={"models"}),
        "repeats": config.repeats,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "models": by_model,
        **machine(),
    }
    directory = Path(config.run_dir).absolute()
    write(result, table(result), config.run_dir)
    (directory / "memory.md").write_text(markdown(result), encoding="utf-8")
    curves.activations(result, directory)
    return result


def weigh(model: Model, config: BenchConfig, device: torch.device) -> dict[str, Any]:
    """Peak bytes of each way at each number of segments; seconds and bytes of the state at the largest."""
    sizes = config.memory
    together = truncation.together(model, config.trainer.recompute_together)
    peaks: dict[str, list[int]] = {way: [] for way in WAYS}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}

    def step(way: str, segments: int) -> Callable[[], None]:
        generator = torch.Generator().manual_seed(config.seed)
        tokens = torch.randint(
            measure.VOCABULARY, (sizes.batch_size, segments * sizes.segment_length), generator=generator
        ).to(device)
        return lambda: one_pass(model, tokens, sizes.segment_length, way, together)

    for way in WAYS:
        step(way, sizes.segments[0])()  # allocates the gradients' tensors, and warms up
    name = type(model).__name__
    for segments, way in track(
        list(itertools.product(sizes.segments, WAYS)), description=f"{name}: bytes", transient=True
    ):
        peaks[way].append(peak_bytes(step(way, segments), device))
    for _ in track(range(config.repeats), description=f"{name}: seconds", transient=True):
        for way in WAYS:
            do = step(way, sizes.segments[-1])
            seconds[way].append(measure.seconds(do, device))
    ratios = {way: [a / b for a, b in zip(seconds[way], seconds["none"], strict=True)] for way in WAYS[1:]}
    with torch.no_grad():
        tokens_BSN = torch.zeros(
            sizes.batch_size, sizes.segments[-1], sizes.segment_length, dtype=torch.long, device=device
        )
        state_bytes = model(tokens_BSN).state.nbytes
    return {
        "together": together,
        "peak_bytes": peaks,
        "seconds": seconds,
        "state_bytes": state_bytes,
        "memory_ratio": {way: peaks[way][-1] / peaks["none"][-1] for way in WAYS[1:]},
        "time_ratio": {way: spread(values) for way, values in ratios.items()},
    }


def one_pass(model: Model, tokens_BT: Tensor, segment_length: int, way: str, together: int) -> None:
    """Forward and backward pass of the next-token loss. The gradients' tensors stay allocated."""
    model.zero_grad(set_to_none=False)
    model.backbone.recompute = way == "block"
    targets_BT = tokens_BT.roll(-1, dims=1)

    def keep(logits_BnV: Tensor, start: int) -> tuple[Tensor]:
        first = 0 if model.answers_once else start  # an encoder answers once per segment
        return (nats(logits_BnV, targets_BT[:, first : first + logits_BnV.shape[1]]),)

    lengths = [segment_length] * (tokens_BT.shape[1] // segment_length)
    calls = truncation.plan(lengths, recompute=together if way == "segment" else 0)
    kept = truncation.run(model, tokens_BT.split(segment_length, dim=1), calls, keep)
    kept.values[0].mean().backward()


def peak_bytes(do: Callable[[], None], device: torch.device) -> int:
    """The peak of bytes allocated while `do` ran, beyond those before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        do()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profiler:
        do()
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def title(result: dict[str, Any]) -> str:
    return (
        f"forward + backward, batch {result['batch_size']}, segments of {result['segment_length']} tokens, "
        f"width {result['width']}, {result['layers']} layers, {result['heads']} heads, {measure.VOCABULARY} "
        "token ids"
    )


def columns(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The figures at the largest number of segments: column heads and rows."""
    head = [
        "model",
        "together",
        "state, kB",
        "none, MB",
        "block, MB",
        "segment, MB",
        "block / none",
        "segment / none",
        "time, block",
        "time, segment",
    ]
    rows = []
    for name, measured in result["models"].items():
        peaks = [f"{measured['peak_bytes'][way][-1] / 1e6:.1f}" for way in WAYS]
        ratios = [f"{measured['memory_ratio'][way]:.3f}" for way in WAYS[1:]]
        times = [
            "{median:.2f} ({min:.2f} .. {max:.2f})".format(**measured["time_ratio"][way]) for way in WAYS[1:]
        ]
        rows.append(
            [name, str(measured["together"]), f"{measured['state_bytes'] / 1e3:.0f}", *peaks, *ratios, *times]
        )
    return head, rows


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    table = Table(title=f"memory at {result['segments'][-1]} segments: {title(result)}", title_justify="left")
    for column in ("model", "none, MB", "block", "segment", "time, block", "time, segment"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, measured in result["models"].items():
        memory = [f"{measured['memory_ratio'][way]:.3f}" for way in WAYS[1:]]
        times = [f"{measured['time_ratio'][way]['median']:.2f}" for way in WAYS[1:]]
        table.add_row(name, f"{measured['peak_bytes']['none'][-1] / 1e6:.1f}", *memory, *times)
    table.caption = (
        "by trainer.recompute: bytes at their highest beyond parameters, gradients and tokens, and over\n"
        f"those of none; time over that of none, median of {result['repeats']} interleaved passes"
    )
    table.caption_justify = "left"
    return table


def markdown(result: dict[str, Any]) -> str:
    """The same table, and the peaks at every number of segments, in Markdown."""
    head, rows = columns(result)
    lines = [
        f"At {result['segments'][-1]} segments; {title(result)}; {result['repeats']} interleaved passes.",
        "",
    ]
    lines += [
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    lines += [
        "Peak in MB by number of segments:",
        "",
        f"| model | recompute | {' | '.join(map(str, result['segments']))} |",
    ]
    lines += ["|---" * (2 + len(result["segments"])) + "|"]
    for name, measured in result["models"].items():
        for way in WAYS:
            lines.append(
                f"| {name} | {way} | "
                f"{' | '.join(f'{peak / 1e6:.1f}' for peak in measured['peak_bytes'][way])} |"
            )
    return "\n".join(lines) + "\n"
