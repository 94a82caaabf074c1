"""The cost of length: time per token with many and few segments, a long stream, one token of an open segment.

length   seconds per token of a training step, and of reading without gradient, over few and many segments,
         interleaved
stream   one document, read segment by segment: speed, carried bytes and process memory on the way
token    one more token of an open segment (`extend`), early and late in the segment, against reading the
         whole segment
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from memlab.benchmarks import measure, report
from memlab.benchmarks.settings import BenchConfig
from memlab.models.base import Model

# tokens at the first point of a stream; each further point is at twice as many, and the last at the end
FIRST = 8_192


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table and return the figures by model; also in `streaming.json`."""
    sizes, device = config.streaming, measure.device_of(config)
    found: dict[str, Any] = {}
    for name in sizes.models or measure.names():
        model = measure.build(name, config, sizes, sizes.segment_length).to(device)
        found[name] = {"length": length(name, model, config)}
        model.eval()
        with torch.inference_mode():
            found[name]["stream"] = None if model.keeps_everything else stream(name, model, config)
            found[name]["token"] = None if model.answers_once else token(name, model, config)
    result = {
        "suite": "streaming",
        **sizes.model_dump(exclude={"models"}),
        "repeats": config.repeats,
        "models": found,
        **report.machine(),
    }
    report.write(result, table(result), config.run_dir, page(result))
    return result


def length(name: str, model: Model, config: BenchConfig) -> dict[str, Any]:
    """Seconds per token over few and many segments, and their ratio pair by pair.

    Training is a forward and a backward pass.
    """
    sizes, device = config.streaming, measure.device_of(config)
    tokens = {
        side: measure.tokens(config, sizes.batch_size, segments, sizes.segment_length)
        for side, segments in (("few", sizes.few), ("many", sizes.many))
    }

    def training(tokens_BSN: torch.Tensor) -> measure.Work:
        targets_BSN = tokens_BSN.flatten(1).roll(-1, dims=1).view_as(tokens_BSN)

        def both() -> None:
            measure.loss(model, tokens_BSN, targets_BSN).backward()
            model.zero_grad()

        return both

    def reading(tokens_BSN: torch.Tensor) -> measure.Work:
        return torch.inference_mode()(lambda: model(tokens_BSN))

    found = {}
    for way, work in (("training", training), ("reading", reading)):
        sides = {side: work(tokens_BSN) for side, tokens_BSN in tokens.items()}
        seconds = measure.by_turns(sides, config.repeats, device, f"{name}: {way}")
        per_token = {side: [s / tokens[side].numel() for s in values] for side, values in seconds.items()}
        ratios = [many / few for few, many in zip(per_token["few"], per_token["many"], strict=True)]
        found[way] = {"seconds_per_token": per_token, "ratio": report.spread(ratios)}
    return found


def stream(name: str, model: Model, config: BenchConfig) -> list[dict[str, Any]]:
    """One long document: at each point, tokens read, speed since the point before, and what is held."""
    sizes, device = config.streaming, measure.device_of(config)
    n, tokens = sizes.segment_length, sizes.growing_tokens if model.state_grows else sizes.tokens
    points = {-(-at // n) for at in (FIRST << p for p in range(64)) if at < tokens} | {-(-tokens // n)}
    pieces = itertools.cycle(measure.tokens(config, 64, 1, n).unbind(0))
    state = model.init_state(1)
    for _ in range(4):
        state = model.segment(next(pieces), state).state
    state, found = model.init_state(1), []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    began, done = time.perf_counter(), 0
    for s in measure.progress(range(1, max(points) + 1), f"{name}: {tokens:,} tokens"):
        state = model.segment(next(pieces), state).state
        if s in points:
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            now = time.perf_counter()
            held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else resident()
            speed = (s * n - done) / (now - began)
            found.append(
                {
                    "tokens": s * n,
                    "tokens_per_second": speed,
                    "state_bytes": state.nbytes,
                    "memory_bytes": held,
                }
            )
            began, done = time.perf_counter(), s * n
    return found


def resident() -> int | None:
    """Bytes of this process in memory, as Linux reports them; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    return next(
        int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmRSS")
    )


def token(name: str, model: Model, config: BenchConfig) -> dict[str, Any]:
    """Seconds of one more token, early and late in a segment, and of a whole segment.

    Early and late: 1 token, or all but one, have been read. An earlier segment has filled the memory.
    """
    sizes, device = config.streaming, measure.device_of(config)
    ids_BN = measure.tokens(config, 1, sizes.segment_length)
    state = model.segment(ids_BN, model.init_state(1)).state
    _, early = model.extend(ids_BN[:, :1], model.begin(state))
    _, late = model.extend(ids_BN[:, 1:-1], early)
    many = range(20)  # one token takes too little time to measure
    sides: dict[str, measure.Work] = {
        "early": lambda: [model.extend(ids_BN[:, :1], early) for _ in many],
        "late": lambda: [model.extend(ids_BN[:, -1:], late) for _ in many],
        "segment": lambda: model.segment(ids_BN, state),
    }
    seconds = measure.by_turns(sides, config.repeats, device, f"{name}: a token")
    seconds |= {side: [s / len(many) for s in seconds[side]] for side in ("early", "late")}
    ratios = [late / early for early, late in zip(seconds["early"], seconds["late"], strict=True)]
    return {"seconds": seconds, "late_over_early": report.spread(ratios)}


def cells(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for name, measured in result["models"].items():
        ratios = (measured["length"][way]["ratio"] for way in ("training", "reading"))
        line = [name, *map(report.with_range, ratios)]
        points = measured["stream"]
        if points is None:
            line += ["-"] * 4
        else:
            line += [f"{points[i]['tokens_per_second']:,.0f}" for i in (0, -1)]
            line += [f"{points[-1]['state_bytes'] / 1e6:.2f}"]
            line += [
                " → ".join(
                    f"{p['memory_bytes'] / 1e6:.0f}" if p["memory_bytes"] else "?"
                    for p in (points[0], points[-1])
                )
            ]
        if measured["token"] is None:
            line += ["-"] * 2
        else:
            medians = {
                side: 1000 * report.spread(values)["median"]
                for side, values in measured["token"]["seconds"].items()
            }
            line += [f"{medians['early']:.2f} / {medians['late']:.2f}", f"{medians['segment']:.1f}"]
        lines.append(line)
    return lines


def heads(result: dict[str, Any]) -> list[str]:
    over = f"{result['many']} / {result['few']} segments"
    return [
        "model",
        f"training, {over}",
        f"reading, {over}",
        "tokens/s at the beginning",
        "at the end",
        "state, MB",
        "process, MB",
        "a token, ms: first / last of its segment",
        "a segment, ms",
    ]


def title(result: dict[str, Any]) -> str:
    return (
        f"segments of {result['segment_length']} tokens, width {result['width']}, {result['layers']} layers, "
        f"{result['heads']} heads; {result['repeats']} interleaved pairs"
    )


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal, in 80 columns."""
    head = ("model", "training", "reading", "first, tokens/s", "last", "state, MB", "token, ms", "segment")
    body = [
        [name, *(ratio.partition(" ")[0] for ratio in ratios), first, last, state, one, whole]
        for name, *ratios, first, last, state, _, one, whole in cells(result)
    ]
    caption = (
        f"training, reading: time per token over {result['many']} segments over that over {result['few']}\n"
        f"first, last: speed at the beginning and end of {result['tokens']:,} tokens\n"
        "token, segment: ms of one more token, first / last of its segment, and of a segment"
    )
    return report.terminal_table(f"streaming: {title(result)}", head, body, caption)


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    lines = ["## Cost over length", "", f"{title(result).capitalize()}. Median (smallest–largest).", ""]
    lines += [
        (
            f"Time per token over {result['many']} segments over that over {result['few']}, "
            f"{result['batch_size']} rows (training is forward + backward); a stream of {result['tokens']:,} "
            f"tokens ({result['growing_tokens']:,} if the state grows), one row, read segment by segment; "
            "and one more token of an open segment."
        ),
        "",
        *report.rows(heads(result), cells(result)),
        "The streams on the way, thousand tokens per second:",
        "",
    ]
    streams = {name: measured["stream"] for name, measured in result["models"].items() if measured["stream"]}
    longest: list[dict[str, Any]] = max(streams.values(), key=len, default=[])
    at = [f"{point['tokens'] / 1000:,.0f}k" for point in longest]
    body = []
    for name, points in streams.items():
        speeds = [f"{point['tokens_per_second'] / 1000:.1f}" for point in points]
        body.append([name, *speeds, *["-"] * (len(longest) - len(speeds))])
    return [*lines, *report.rows(["model, after tokens", *at], body)]
