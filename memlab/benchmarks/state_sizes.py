"""The memory table of the Infini-attention paper (arXiv 2404.07143, tables 1 and 2), from real states.

The paper's sizes: 12 layers of width 1024, 8 heads of 128, segments of 2,048 tokens, 65,536 tokens read. The
models are on torch's meta device, which has shapes without data, so this takes seconds and no memory. The
paper counts the numbers that are "carried", but by different rules:

    Transformer-XL   keys and values of the window in every layer; the state is hidden states, half as many
                     numbers
    Memorizing       those of the window in every layer, and of 65,000 tokens in one layer; this is the state
    RMT              keys and values of 100 memory tokens in every layer; the state is 100 vectors
    Infini           matrix and vector of every head; this is the state. The keys and values of the present
                     segment, which every model needs while it reads, are left out
    the others       their state; table 1 counts the Compressive Transformer's in the same way

The table also has our two counts: what is carried, and what is held while a segment is read
(`memlab/evaluation/memory.py`). The paper's 114 × is Memorizing over Infini, not a full cache over Infini.
"""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from rich.table import Table
from torch.utils import _pytree as pytree

from memlab.benchmarks.report import write
from memlab.benchmarks.settings import BenchConfig
from memlab.config.compose_model import model_values
from memlab.evaluation import memory
from memlab.layers.attention import KeyValues
from memlab.layers.state import State
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.ops import nearest
from memlab.tracking.versions import versions

SEGMENT, SEGMENTS = 2048, 32
VOCABULARY = 32_000
_MEMORY = 65_000  # "65K"; with 65,536 the paper's 183M would be 184.5M
_BACKBONE = {"layers": 12, "width": 1024, "heads": 8}
_MEMORIZING = {"mem_len": SEGMENT, "memory_layer": 9, "memory_size": _MEMORY, "top_k": 32}
OPTIONS: dict[str, dict[str, Any]] = {
    "transformer_xl": {"mem_len": SEGMENT, "positions": "rope"},
    "memorizing": _MEMORIZING,
    "rmt": {"memory_tokens": 100},
    "infini": {},
    "infini_delta": {},
    # not in the paper's table 2
    "compressive": {"mem_len": SEGMENT, "compressed_len": 512, "compression_rate": 4, "positions": "rope"},
    "armt": {"memory_tokens": 100},
    "gated_deltanet": {},
    "linear_attention": {},
}
PRINTED = {
    "transformer_xl": "50M",
    "memorizing": "183M",
    "rmt": "2.5M",
    "infini": "1.6M",
    "infini_delta": "1.6M",
}
_READ = {"transformer_xl", "rmt"}  # for these, the paper counts what a segment reads instead of the state


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table, return the numbers held for one document by model; also `state_sizes.json`."""
    # On the meta device, scores take no memory: the search for the nearest keys needs no thousands of pieces
    with mock.patch.object(nearest, "_SCORES", 1 << 60), torch.device("meta"), torch.no_grad():
        models = {name: measure(name, build(name)) for name in OPTIONS}
    result = {
        "suite": "state_sizes",
        "tokens": SEGMENTS * SEGMENT,
        "segment_length": SEGMENT,
        "models": models,
        "memorizing_over_infini": {
            key: models["memorizing"][key] / models["infini"][key] for key in ("paper", "carried", "held")
        },
        "versions": versions(),
    }
    write(result, table(result), config.run_dir)
    return result


def build(name: str) -> Model:
    """A model of the table: its preset at the paper's sizes."""
    values = {**_BACKBONE, **OPTIONS[name]}
    overrides = [f"model.{key}={value}" for key, value in values.items()]
    return compose(model_values(name, overrides), VOCABULARY).eval()


def measure(name: str, model: Model) -> dict[str, Any]:
    """Numbers held for one document by each definition, and the compression ratios, all in fp32."""
    tokens_BN = torch.zeros(1, SEGMENT, dtype=torch.long)
    read = SEGMENTS - 1 if model.state_grows else 1  # a state that does not grow has a constant size
    before = model(tokens_BN[:, None].expand(-1, read, -1), model.init_state(1)).state
    state = model.segment(tokens_BN, before).state
    size = model.backbone.embed.weight.element_size()
    cost = memory.weigh(model, state, model.peak_bytes(tokens_BN, before), SEGMENTS * SEGMENT)
    return {
        "printed": PRINTED.get(name, "-"),
        "paper": numbers(*key_values(model.begin(state))) if name in _READ else numbers(state),
        "carried": numbers(state),
        "held": cost.peak_bytes / size,
        "compression_carry": cost.compression_carry,
        "compression_peak": cost.compression_peak,
    }


def key_values(open: Any) -> list[KeyValues]:
    """The keys and values that a segment's rows look at when it begins."""
    leaves = pytree.tree_leaves(open.layers, is_leaf=lambda node: isinstance(node, KeyValues))
    return [leaf for leaf in leaves if isinstance(leaf, KeyValues)]


def numbers(*states: State) -> int:
    """Numbers in these states, without the counters of tokens."""
    return sum(t.numel() for state in states for t in state.tensors() if t.is_floating_point())


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    table = Table(
        padding=(0, 0, 0, 1),
        title=f"numbers held for one document after {result['tokens']:,} tokens, at the sizes of the "
        "Infini-attention paper",
    )
    for column in ("model", "printed", "its count", "carried", "at peak", "compr.", "of peak"):
        table.add_column(column, justify="left" if column == "model" else "right", no_wrap=True)
    for name, m in result["models"].items():
        counts = (f"{m[key] / 1e6:,.2f}M" for key in ("paper", "carried", "held"))
        table.add_row(
            name, m["printed"], *counts, f"{m['compression_carry']:,.0f} ×", f"{m['compression_peak']:,.0f} ×"
        )
    ratios = result["memorizing_over_infini"]
    table.add_section()
    table.add_row(
        "memoriz. / infini", "114 ×", *(f"{ratios[key]:,.1f} ×" for key in ("paper", "carried", "held"))
    )
    table.caption = (
        "printed, its count: the paper's figure, and what it counts, from the states; carried: what must "
        "survive to the next segment;\nat peak: with the keys and values of the segment that is read; "
        "compr.: a full cache of the same backbone over these, in bytes"
    )
    table.caption_justify = "left"
    return table
