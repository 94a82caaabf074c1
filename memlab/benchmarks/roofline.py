"""How much of the machine a training step uses: its operations per second over those of plain matrix
products.

The yardstick is the fastest of the matrix products at the shapes of the models' linear layers, in fp32,
measured in the same run. A step is forward pass, backward pass and AdamW on the next-token loss. Operations
are those that `torch.utils.flop_counter` knows.
"""

from __future__ import annotations

from typing import Any

from rich.table import Table

from memlab.benchmarks import measure, report
from memlab.benchmarks.settings import BenchConfig
from memlab.evaluation import cost


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table, return each model's operations, seconds and share; also `roofline.json`."""
    sizes, device = config.roofline, measure.device_of(config)
    tokens_BSN = measure.tokens(config, sizes.batch_size, sizes.segments, sizes.segment_length)
    models = {
        name: measure.build(name, config, sizes, sizes.segment_length)
        for name in sizes.models or measure.names()
    }
    found: dict[str, Any] = {}
    rates: list[dict[str, float]] = []
    for name, model in models.items():
        rates.append(measure.matmul_rate(tokens_BSN.numel(), sizes.width, 4 * sizes.width, device))
        step = measure.training_step(model.to(device), tokens_BSN)
        operations = cost.operations(step)
        seconds = measure.by_turns({"step": step}, config.repeats, device, name, warm_up=1)["step"]
        found[name] = {"operations": operations, "seconds": seconds, "time": measure.most_time(step, 6)}
        models[name] = model.to("cpu")
    best = max(rate for at in rates for rate in at.values())
    for measured in found.values():
        measured["share"] = report.spread(
            [measured["operations"] / taken / best for taken in measured["seconds"]]
        )
    result = {"suite": "roofline", "matmul_flops_per_second": best, "shapes": rates, "models": found}
    result |= {**sizes.model_dump(exclude={"models"}), "repeats": config.repeats, **report.machine()}
    report.write(result, table(result), config.run_dir, page(result))
    return result


def title(result: dict[str, Any]) -> str:
    return (
        f"forward + backward + AdamW, batch {result['batch_size']}, {result['segments']} segments of "
        f"{result['segment_length']} tokens, width {result['width']}, {result['layers']} layers, "
        f"{result['heads']} heads; {result['repeats']} repeats"
    )


def cells(result: dict[str, Any]) -> list[list[str]]:
    lines = []
    for name, measured in result["models"].items():
        median = report.spread(measured["seconds"])["median"]
        share = {key: 100 * value for key, value in measured["share"].items()}
        speed = [
            f"{1000 * median:.0f}",
            f"{measured['operations'] / 1e9:.0f}",
            f"{measured['operations'] / median / 1e9:.0f}",
        ]
        lines.append([name, *speed, report.with_range(share, 0)])
    return lines


HEAD = ["model", "step, ms", "GFLOP", "GFLOP/s", "share, %"]


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    caption = (
        f"of {result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, the fastest plain matrix products at "
        "these shapes"
    )
    return report.terminal_table(f"roofline: {title(result)}", HEAD, cells(result), caption)


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    lines = ["## Share of the machine", "", f"One training step: {title(result)}.", ""]
    lines += [
        (
            f"The yardstick is {result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, the fastest plain "
            "matrix products at these shapes. Operations are counted by `torch.utils.flop_counter`, those "
            "of attention as if nothing were masked, which is how they are computed."
        ),
        "",
        *report.rows(HEAD, cells(result)),
        "Where the time goes (one step under torch's profiler):",
        "",
    ]
    for name, measured in result["models"].items():
        shares = ", ".join(
            f"{key.removeprefix('aten::')} {share:.0%}" for key, share in measured["time"].items()
        )
        lines.append(f"- `{name}`: {shares}")
    return [*lines, ""]
