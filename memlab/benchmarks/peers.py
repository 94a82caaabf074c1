"""A training step of ours against the implementations that people use today: their time / ours.

Both sides have the same width, layers, heads, segments, tokens, number format and optimizer, train on the
same tokens, and alternate. Two figures show how large a ratio can be. `without_memory` is that of our
Transformer of these sizes without a memory, which reads all segments at once: any memory adds work to it.
`ceiling` is that of a program which does our floating point operations at the rate of plain matrix products,
measured in the same run: no code for this processor could exceed it. `peer_models.py` has the comparisons.
"""

from __future__ import annotations

from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from memlab.benchmarks import measure, peer_models, report
from memlab.benchmarks.measure import Work
from memlab.benchmarks.peer_models import PEERS, Peer
from memlab.benchmarks.settings import BenchConfig
from memlab.evaluation import cost


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table, and return {"peers": {name: ratio}, "sizes": ...}; also in `peers.json`.

    The ratio of a comparison is the median at the size where that is smallest.
    """
    sizes = config.peers
    found: dict[str, dict[str, Any]] = {}
    for segments, tokens in sizes.segments:
        rows = segments * tokens * sizes.batch_size
        rates = measure.matmul_rate(rows, sizes.width, 4 * sizes.width, measure.device_of(config))
        compared = {
            name: compare(name, PEERS[name], config, segments, tokens, max(rates.values()))
            for name in sizes.models or PEERS
        }
        found[f"{segments} x {tokens}"] = {"matmul_flops_per_second": rates, "models": compared}
    ratios = {
        name: min(at["models"][name]["ratio"]["median"] for at in found.values())
        for name in sizes.models or PEERS
    }
    result = {
        "suite": "peers",
        "peers": ratios,
        "sizes": found,
        **sizes.model_dump(exclude={"models", "segments"}),
    }
    result |= {"repeats": config.repeats, **report.machine()}
    report.write(result, table(result), config.run_dir, page(result))
    return result


def compare(
    name: str, peer: Peer, config: BenchConfig, segments: int, tokens: int, rate: float
) -> dict[str, Any]:
    """One comparison at one size. `rate`: FLOP/s of plain matrix products."""
    sizes, device = config.peers, measure.device_of(config)
    ids_BT = measure.tokens(config, sizes.batch_size, segments * tokens + 1)
    ours = measure.build(
        peer.model, config, sizes, tokens, memory_tokens=sizes.memory_tokens, **peer.ours
    ).to(device)
    without = measure.build("transformer", config, sizes, tokens, **{"context": "segment", **peer.ours}).to(
        device
    )
    torch.manual_seed(config.seed)
    with peer_models.quiet():
        theirs, loss = peer.build(sizes, tokens)
        theirs = theirs.to(device).train()
        sides: dict[str, Work] = {"theirs": peer_models.step(theirs, loss, ids_BT)}
        sides |= {"ours": our_step(ours, ids_BT, segments), "without": our_step(without, ids_BT, segments)}
        first = {side: float(work()) for side, work in sides.items()}
        seconds = measure.by_turns(sides, config.repeats, device, f"{name}, {segments} x {tokens}", warm_up=1)
        last = {side: float(work()) for side, work in sides.items()}
    operations = cost.operations(sides["ours"])
    ratios = {
        side: [a / b for a, b in zip(seconds["theirs"], seconds[side], strict=True)]
        for side in ("ours", "without")
    }
    return {
        "package": f"{peer.package} {peer.version}",
        "parameters": {"ours": parameters(ours), "theirs": parameters(theirs)},
        "seconds": seconds,
        "ratio": report.spread(ratios["ours"]),
        "without_memory": report.spread(ratios["without"]),
        "ceiling": report.spread(seconds["theirs"])["median"] / (operations / rate),
        "operations": operations,
        "loss": {side: [first[side], last[side]] for side in sides},  # shows that both really train
        "differs": peer.differs,
        "defects": peer.defects,
        "words": peer.note,
    }


def our_step(model: measure.Model, ids_BT: Tensor, segments: int) -> Work:
    """The same tokens, cut into segments."""
    inputs_BSN, targets_BSN = (t.unflatten(1, (segments, -1)) for t in (ids_BT[:, :-1], ids_BT[:, 1:]))
    return measure.training_step(model, inputs_BSN, targets_BSN)


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def title(result: dict[str, Any]) -> str:
    return (
        f"forward + backward + AdamW, batch {result['batch_size']}, width {result['width']}, "
        f"{result['layers']} layers, {result['heads']} heads, {result['memory_tokens']} memory tokens of "
        f"RMT; {result['repeats']} interleaved pairs"
    )


def cells(measured: dict[str, Any]) -> list[str]:
    milliseconds = [
        f"{1000 * report.spread(measured['seconds'][side])['median']:.0f}" for side in ("theirs", "ours")
    ]
    return [
        *milliseconds,
        report.with_range(measured["ratio"]),
        f"{measured['without_memory']['median']:.2f}",
        f"{measured['ceiling']:.1f}",
    ]


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    body = [
        [name, size, *cells(measured)]
        for size, at in result["sizes"].items()
        for name, measured in at["models"].items()
    ]
    head = ("", "size", "theirs, ms", "ours, ms", "theirs / ours", "without memory", "ceiling")
    caption = "without memory: theirs over the time of our Transformer that has none\n"
    caption += (
        "ceiling: theirs over the time of our operations at the rate of plain matrix products, measured in "
        "the same run"
    )
    return report.terminal_table(f"peers: {title(result)}", head, body, caption, names=2)


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    lines = [
        "## Against other implementations",
        "",
        f"One training step: {title(result)}. Median (smallest–largest).",
        "",
    ]
    lines += [
        (
            "Two columns show how large a ratio can be. *Without memory* is theirs over our Transformer of "
            "these sizes that has no memory and reads all segments at once: any memory adds work to it. The "
            "*ceiling* is the ratio of a program that does our floating point operations at the rate of "
            "plain matrix products (measured in the same run), the most that the machine can do."
        ),
        "",
    ]
    head = [
        "comparison",
        "package",
        "theirs, ms",
        "ours, ms",
        "theirs / ours",
        "without memory",
        "ceiling",
        "parameters, theirs",
        "ours",
    ]
    for size, at in result["sizes"].items():
        best = max(at["matmul_flops_per_second"].values()) / 1e9
        body = []
        for name, measured in at["models"].items():
            counts = [f"{measured['parameters'][side]:,}" for side in ("theirs", "ours")]
            body.append([name, measured["package"], *cells(measured), *counts])
        lines += [
            f"**{size} (segments x tokens)**, matrix products {best:.0f} GFLOP/s",
            "",
            *report.rows(head, body),
        ]
    lines += ["What the other side does differently, and its known defects:", ""]
    for name, measured in next(iter(result["sizes"].values()))["models"].items():
        note = f"{measured['words']}. " if measured["words"] else ""
        lines.append(f"- `{name}`: {note}Differences: {measured['differs']}. Defects: {measured['defects']}.")
    return [*lines, ""]
