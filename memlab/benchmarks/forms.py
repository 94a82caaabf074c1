"""The speed of each model's parallel form against its recurrent form, which gives the same numbers.

Both forms alternate, with a forward and a backward pass over the same random tokens. A model without a
parallel form is only measured in its recurrent form. The profile comes from separate passes, since a profiler
slows down what it watches.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

from memlab.benchmarks import measure
from memlab.benchmarks.report import machine, rows, spread, with_range, write
from memlab.benchmarks.settings import BenchConfig
from memlab.models.base import Model

WARM_UP = 2  # passes of each form before those that count
FORMS = ("recurrent", "parallel")


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table, and return the seconds of a pass of each form, and their ratio, by model.

    Also written to `forms.json`. A model without a parallel form has no ratio.
    """
    sizes = config.forms
    models = {
        name: measure.build(name, config, sizes, sizes.segment_length)
        for name in sizes.models or measure.names()
    }
    tokens_BSN = measure.tokens(config, sizes.batch_size, sizes.segments, sizes.segment_length)
    by_model = {
        name: compare(name, model.to(tokens_BSN.device), tokens_BSN, config.repeats)
        for name, model in models.items()
    }
    result = {
        "suite": "forms",
        **sizes.model_dump(exclude={"models"}),
        "repeats": config.repeats,
        "models": by_model,
        **machine(),
    }
    write(result, table(result), config.run_dir, page(result))
    return result


def compare(name: str, model: Model, tokens_BSN: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of alternating passes of both forms, their ratio pass by pass, and the slowest operations."""
    there = FORMS if model.parallel is not None else FORMS[:1]
    forms: dict[str, measure.Work] = {form: partial(one_pass, model, form, tokens_BSN) for form in there}
    seconds = measure.by_turns(forms, repeats, tokens_BSN.device, name, WARM_UP)
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)] if len(there) > 1 else []
    return {
        "seconds": {form: seconds.get(form) for form in FORMS},
        "ratio": spread(ratios) if ratios else None,
        "time": {form: measure.most_time(do) for form, do in forms.items()},
    }


def one_pass(model: Model, form: str, tokens_BSN: Tensor) -> None:
    """Forward and backward pass of the next-token loss."""
    model.zero_grad()
    output = getattr(model, form)(tokens_BSN, model.init_state(len(tokens_BSN)))
    targets_BSN = tokens_BSN.roll(-1, dims=2)[..., -output.logits.shape[2] :]
    loss = F.cross_entropy(output.logits.flatten(0, 2), targets_BSN.flatten())
    (loss if output.auxiliary is None else loss + output.auxiliary.mean()).backward()


def milliseconds(measured: dict[str, Any]) -> list[str]:
    """Medians of each form; - if there is none."""
    both = (measured["seconds"][form] for form in FORMS)
    return ["-" if seconds is None else f"{1000 * spread(seconds)['median']:.1f}" for seconds in both]


def heading(result: dict[str, Any]) -> str:
    return (
        f"forward + backward, batch {result['batch_size']}, {result['segments']} segments of "
        f"{result['segment_length']} tokens, width {result['width']}, {result['layers']} layers, "
        f"{result['heads']} heads; {result['repeats']} interleaved pairs"
    )


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    body = []
    for name, measured in result["models"].items():
        ratio = measured["ratio"]
        cell = "no parallel form" if ratio is None else with_range(ratio)
        body.append([name, *milliseconds(measured), cell])
    head = ["model", "recurrent, ms", "parallel, ms", "recurrent / parallel"]
    return ["## Parallel and recurrent form", "", f"{heading(result).capitalize()}.", "", *rows(head, body)]


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    title = f"forms: {heading(result)}"
    table = Table(title=title)
    for column in ("model", "recurrent, ms", "parallel, ms", "ratio", "min", "max"):
        table.add_column(column, justify="left" if column == "model" else "right")
    captions = []
    for name, measured in result["models"].items():
        ratio = measured["ratio"]
        table.add_row(name, *milliseconds(measured), *(f"{v:.2f}" for v in (ratio or {}).values()))
        form = list(measured["time"])[-1]
        shares = ", ".join(
            f"{key.removeprefix('aten::')} {share:.0%}" for key, share in measured["time"][form].items()
        )
        captions.append(f"{name}{' (it has no parallel form)' if ratio is None else ''}: {shares}")
    table.caption = "Where the time of the parallel form goes:\n" + "\n".join(captions)
    table.caption_justify = "left"
    return table
