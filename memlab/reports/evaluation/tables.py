"""The tables of an evaluation, from the entries of `evaluation.json` (see `memlab/evaluation/record.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memlab.reports.evaluation.figures import SCORES
from memlab.reports.summary import ratio, size
from memlab.terminal import tables

_CONTROLS = {"memory_off": "mem. off", "shuffled": "shuffled"}


def print_lengths(
    console: Console, record: dict[str, Any], entries: Sequence[dict[str, Any]], trained_samples: int
) -> None:
    """Print accuracy by length, the cost, and accuracy by depth if the task has depths."""
    unit = record["lengths_in"]
    longest = record[f"trained_{unit}"]
    trained = "as pretrained" if longest is None else f"trained up to {longest:,} {unit}"
    chance = format(record["chance"], ".3f" if record["chance"] >= 0.0005 else ".1g")
    title = f"{_title(record)}; {trained}; chance {chance}"
    said = (
        "accuracy: free-running; forced: with the true tokens before each; whole: every token of it right; "
        "intervals: 95 %, "
    )
    said += "over samples of this one training"
    controls = [name for name in _CONTROLS if any(name in e["controls"] for e in entries)]
    table = _table(
        title,
        [unit, "samples", "accuracy", "95 %", "forced", "whole", *map(_CONTROLS.__getitem__, controls)],
    )
    for e in entries:
        fewer = e["samples"] < trained_samples
        off = [f"{e['controls'][name]['accuracy']:.4f}" if name in e["controls"] else "" for name in controls]
        plain = (f"{e[key]:.4f}" for key in ("accuracy", "accuracy_teacher_forced", "exact_match"))
        accuracy, forced, whole = plain
        samples = f"{e['samples']:,}" + "*" * fewer
        table.add_row(
            f"{e[unit]:,}", samples, accuracy, interval(e["intervals"]["accuracy"]), forced, whole, *off
        )
    _print(console, table, said)
    if any(e["samples"] < trained_samples for e in entries):
        console.print(
            f"* fewer samples than the training's test ({trained_samples:,}): see samples and max_tokens",
            style="dim",
        )

    said = (
        "state: carried for one document; carried, peak: a full cache over the state, and over all that is "
        "held while a "
    )
    said += "segment is read; memory: the peak of this process"
    padded = any(_used(e["memory"]) < e["memory"]["state_bytes"] for e in entries)
    said += "; used: the state without padding" * padded
    columns = ["segments", "tokens", "state", *["used"] * padded, "carried", "peak", "tokens/s", "memory"]
    cost = _table("cost", columns)
    for e in entries:
        m = e["memory"]
        ratios = (ratio(m["compression_carry"]), ratio(m["compression_peak"]))
        speed = f"{e['tokens_per_second']:,.0f}"
        cost.add_row(
            f"{e['segments']:,}",
            f"{e['tokens']:,}",
            size(m["state_bytes"]),
            *[size(_used(m))] * padded,
            *ratios,
            speed,
            size(e["peak_memory"]["bytes"]),
        )
    _print(console, cost, said)
    _print_cost(console, record)
    if any(e["depth"] for e in entries):
        _print(console, _depths([e for e in entries if e["depth"]], unit, record["score"]))


def print_text(console: Console, record: dict[str, Any], entry: dict[str, Any]) -> None:
    """Print bits per byte, losses and perplexities, and the loss by position."""
    title = f"{_title(record)}: {entry['documents_read']} test documents, {entry['tokens']:,} tokens"
    if entry.get("lost_bytes"):
        title += f", {entry['lost_bytes']:,} bytes not given back by the tokenizer"
    table = _table(title, ["", "figure", "95 %, documents"])
    bounds = entry["intervals"]
    names = ("bits_per_byte", "loss", "perplexity", "bits_per_word", "word_perplexity")
    for name in (name for name in names if name in entry):  # 0.1 had no bits per word
        table.add_row(
            name.replace("_", " "), f"{entry[name]:,.4f}", interval(bounds[name]) if bounds.get(name) else ""
        )
    for name, control in entry["controls"].items():
        found = f"{control['bits_per_byte']:,.4f}" if control["tokens"] else "no two documents at a time"
        table.add_row(
            escape(f"bits per byte, {name.replace('_', ' ')}"), found, f"on {control['tokens']:,} tokens"
        )
    _print(console, table)
    controls = [name for name in _CONTROLS if name in entry["controls"]]
    positions = _table(
        "loss by position, nats per token",
        ["from token", "tokens", "loss", *map(_CONTROLS.__getitem__, controls)],
    )
    for r in entry["by_position"]:
        other = [
            next((o["loss"] for o in entry["controls"][c]["by_position"] if o["from"] == r["from"]), None)
            for c in controls
        ]
        positions.add_row(
            f"{r['from']:,}",
            f"{r['tokens']:,}",
            f"{r['loss']:.4f}",
            *("" if o is None else f"{o:.4f}" for o in other),
        )
    _print(console, positions)
    m = entry["memory"]
    console.print(
        f"state {size(m['state_bytes'])} after {m['tokens']:,} tokens; compression "
        f"{ratio(m['compression_carry'])} carried, {ratio(m['compression_peak'])} peak; "
        f"{entry['tokens_per_second']:,.0f} tokens/s",
        soft_wrap=True,
    )
    _print_cost(console, record)


def print_stream(console: Console, record: dict[str, Any], entry: dict[str, Any]) -> None:
    """Print speed and memory over the tokens read."""
    kind = "GPU memory" if entry["peak_memory_kind"] == "gpu" else "resident memory"
    title = (
        f"{_title(record)}: one document of {entry['tokens']:,} tokens in segments of "
        f"{entry['segment_length']}, {escape(entry['device'])}"
    )
    table = _table(title, ["tokens", "tokens/s", "peak", "state"])
    for point in entry["points"]:
        speed, peak = f"{point['tokens_per_second']:,.0f}", size(point["peak_memory"])
        table.add_row(f"{point['tokens']:,}", speed, peak, size(point["state_bytes"]))
    _print(console, table, f"tokens/s: since the line above; peak: most {kind} up to there")
    console.print(
        f"at the end against the first {entry['at_32k']['tokens']:,} tokens: memory × "
        f"{entry['memory_ratio']:.3f}, speed × {entry['speed_ratio']:.3f}",
        soft_wrap=True,
    )


def print_inside(console: Console, record: dict[str, Any], entries: Sequence[dict[str, Any]]) -> None:
    """Print the share of memory and how far a segment moves it, by layer; figures show heads and segments."""
    columns = [f"{e['segments']:,} ({e['samples']:,})" for e in entries]
    shown = [
        (kind, layer) for e in entries for kind, of in e["memory_share"].items() for layer in of["layers"]
    ]
    if kinds := sorted(set(shown)):
        title = f"{_title(record)}: share of memory, mean over heads and over the segments after the first"
        said = "memory tokens, remembered: of attention; gated: of the output of memory and local attention"
        table = _table(title, ["segments (samples)", *columns])
        for kind, layer in kinds:
            shares = []
            for of in (e["memory_share"].get(kind, {"layers": [], "values": []}) for e in entries):
                at = of["layers"].index(layer) if layer in of["layers"] else None
                heads = [] if at is None else [h for segment in of["values"][1:] for h in segment[at]]
                shares.append(f"{sum(heads) / len(heads):.3f}" if heads else "")
            table.add_row(escape(f"{kind.replace('_', ' ')}, layer {layer}"), *shares)
        _print(console, table, said)
    if names := list(dict.fromkeys(name for e in entries for name in e["similarity"])):
        title = f"{_title(record)}: similarity of memory, cosine with itself one segment before"
        table = _table(title, ["segments (samples)", *columns])
        for name in names:
            steps = []
            for between in (e["similarity"].get(name, {"between": []})["between"] for e in entries):
                cosines = [
                    between[s][s - 1] for s in range(2, len(between))
                ]  # the first is of the initial state
                steps.append(f"{sum(cosines) / len(cosines):.3f}" if cosines else "")
            table.add_row(
                escape(name.replace("memory_tokens", "memory tokens").replace("layer", "state of layer ")),
                *steps,
            )
        _print(console, table, "mean over the segments after the first")
    for sentence in dict.fromkeys(sentence for e in entries for sentence in e["missing"]):
        console.print(f"not shown: {escape(sentence)}", style="dim", soft_wrap=True)


def _used(memory: dict[str, Any]) -> int:
    """Bytes of a state without padding; entries from before there were bounded caches have none."""
    return int(memory.get("used_bytes", memory["state_bytes"]))


def interval(bounds: Sequence[float]) -> str:
    """Two bounds, such as 0.981–0.994."""
    return f"{bounds[0]:.3f}–{bounds[1]:.3f}"


def _depths(entries: Sequence[dict[str, Any]], unit: str, score: str) -> Table:
    title = (
        f"{SCORES[score]} by where the fact stands, 0 % = at the beginning, by {unit} (samples in brackets)"
    )
    table = _table(title, ["depth", *(f"{e[unit]:,}" for e in entries)])
    for low, high in sorted({(cell["from"], cell["to"]) for e in entries for cell in e["depth"]}):
        cells = [next((c for c in e["depth"] if c["from"] == low), None) for e in entries]
        table.add_row(
            f"{low:.0%} to {high:.0%}",
            *("" if c is None or score not in c else f"{c[score]:.3f} ({c['samples']:,})" for c in cells),
        )
    return table


def _print_cost(console: Console, record: dict[str, Any]) -> None:
    if record.get("policy"):  # the record has the costs of the model as trained
        return
    cost = record["cost"]
    flops = cost["flops_per_token"]
    console.print(
        f"{cost['parameters']:,} parameters; {flops['inference']:,.0f} FLOPs per token read, "
        f"{flops['training']:,.0f} trained on",
        soft_wrap=True,
    )


def _title(record: dict[str, Any]) -> str:
    name = f"{record['model']} on {record['task']}, seed {record['seed']}"
    return escape(f"{name}, policy {record['policy']}" if record.get("policy") else name)


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), show_edge=False
    )
    for column in columns:
        table.add_column(column, justify="left" if not column else "right", no_wrap=True)
    return table


def _print(console: Console, table: Table, said: str = "") -> None:
    table.title_style = "bold"
    tables.show(console, table, caption=said)
    console.print()
