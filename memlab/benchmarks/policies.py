"""Policies of a bounded cache against full attention: speed, and what is held, over the length of a document.

One document is read segment by segment, without gradient, by the same weights under each policy, in turns. At
1K tokens, and at each further point at twice as many, it reports tokens per second since the point before,
the bytes of the state, and the bytes held while a segment is read (the state and the segment's keys and
values).
"""

from __future__ import annotations

import time
from typing import Any

import torch
from rich.table import Table

from memlab.benchmarks import measure, report
from memlab.benchmarks.settings import BenchConfig, PoliciesConfig
from memlab.config.compose_model import model_values
from memlab.models import choices
from memlab.models.base import Model
from memlab.models.compose import compose

FULL = "full attention"  # layer_memory=full, which every other line is compared with
QUICK = {
    "tokens": 4096,
    "segment_length": 128,
    "budget": 256,
    "width": 64,
    "layers": 2,
    "heads": 4,
    "kv_heads": 2,
}
_FIRST = 1024  # tokens at the first point


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table and return the figures by policy; also in `policies.json`."""
    sizes, device = config.policies, measure.device_of(config)
    if sizes.quick:
        sizes = sizes.model_copy(update=QUICK)
    names = sizes.names or choices.names("policy")
    models = {name: build(name, config, sizes).to(device).eval() for name in (FULL, *names)}
    readings: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in models}
    with torch.inference_mode():
        for repeat in measure.progress(range(1 + config.repeats), f"policies: {sizes.tokens:,} tokens"):
            for name, model in models.items():
                found = read(model, config, sizes)
                if repeat:  # the first is a warm-up
                    readings[name].append(found)
    whole = readings[FULL][0][-1]
    result = {
        "suite": "policies",
        **sizes.model_dump(exclude={"names", "quick"}),
        "repeats": config.repeats,
        "policies": {name: summary(of, whole) for name, of in readings.items()},
        **report.machine(),
    }
    report.write(result, table(result), config.run_dir, page(result))
    return result


def build(name: str, config: BenchConfig, sizes: PoliciesConfig) -> Model:
    """The model under a policy, always with the same weights."""
    options = [f"model.{key}={getattr(sizes, key)}" for key in ("width", "layers", "heads", "kv_heads")]
    if name == FULL:
        values = model_values("transformer", ["layer_memory=full", *options])
    else:
        values = model_values("cached", [f"policy={name}", *options])
        if "budget" in values["policy"]:
            values["policy"]["budget"] = sizes.budget
    torch.manual_seed(config.seed)
    return compose(values, measure.VOCABULARY)


def read(model: Model, config: BenchConfig, sizes: PoliciesConfig) -> list[dict[str, Any]]:
    """One document, and what is found at each point."""
    device, n = measure.device_of(config), sizes.segment_length
    segments = measure.tokens(config, sizes.tokens // n, 1, n)
    points = {-(-at // n) for at in (_FIRST << p for p in range(64)) if at <= sizes.tokens}
    state, found, seconds, last = model.init_state(1), [], 0.0, 0
    for s, tokens_BN in enumerate(segments, 1):
        before = state
        began = time.perf_counter()
        state = model.segment(tokens_BN, state).state
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds += time.perf_counter() - began
        if s in points:
            found.append(
                {
                    "tokens": s * n,
                    "tokens_per_second": (s - last) * n / seconds,
                    "state_bytes": state.nbytes,
                    "used_bytes": state.used_nbytes,
                    "peak_bytes": model.peak_bytes(tokens_BN, before),
                }
            )
            seconds, last = 0.0, s
    return found


def summary(readings: list[list[dict[str, Any]]], whole: dict[str, Any]) -> dict[str, Any]:
    """The points of all readings, with speeds as medians; the end against full attention and the beginning.

    `late_over_early`: speed between the last two points over that between the second and the third
    (of three points, the first and the second).
    """
    points = [
        {**at[0], "tokens_per_second": report.spread([p["tokens_per_second"] for p in at])}
        for at in zip(*readings, strict=True)
    ]
    early = min(2, max(0, len(points) - 2))
    ratios = [of[-1]["tokens_per_second"] / of[early]["tokens_per_second"] for of in readings]
    return {
        "points": points,
        "late_over_early": report.spread(ratios),
        "state_over_full": points[-1]["state_bytes"] / whole["state_bytes"],
        "peak_over_full": points[-1]["peak_bytes"] / whole["peak_bytes"],
    }


def title(result: dict[str, Any]) -> str:
    return (
        f"{result['tokens']:,} tokens in segments of {result['segment_length']}, budget {result['budget']}, "
        f"width {result['width']}, {result['layers']} layers, {result['heads']} heads on {result['kv_heads']}"
    )


def cells(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for name, found in result["policies"].items():
        end = found["points"][-1]
        speed = [f"{p['tokens_per_second']['median']:,.0f}" for p in (found["points"][0], end)]
        held = [f"{end[key] / 1e6:.2f}" for key in ("state_bytes", "used_bytes", "peak_bytes")]
        lines.append(
            [
                name,
                *speed,
                report.with_range(found["late_over_early"]),
                *held,
                f"{found['peak_over_full']:.2f}",
            ]
        )
    return lines


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal, in 80 columns."""
    head = ("policy", "first", "last", "late", "state", "used", "peak", "of full")
    body = [[*line[:3], line[3].partition(" ")[0], *line[4:]] for line in cells(result)]
    caption = (
        "first, last: tokens/s up to the first point and before the end\n"
        "late: speed before the end over that between two points before\n"
        "state, used, peak: MB at the end, without padding, and while a segment is read"
    )
    return report.terminal_table(f"policies: {title(result)}", head, body, caption)


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    head = [
        "policy",
        "tokens/s at the beginning",
        "at the end",
        "late / early",
        "state, MB",
        "without padding",
        "while a segment is read",
        "over full attention",
    ]
    return [
        "## Policies",
        "",
        f"{title(result).capitalize()}; {result['repeats']} readings in turns.",
        "",
        *report.rows(head, cells(result)),
    ]
