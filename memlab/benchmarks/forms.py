"""The parallel form of each model against its recurrent form: the same numbers and gradients, at what speed?

Both forms do a forward and a backward pass over the same random tokens, by turns. What the time goes into is measured in passes of
their own, since a profiler slows what it watches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from rich.progress import track
from rich.table import Table
from torch import Tensor

from memlab import schema
from memlab.benchmarks.report import machine, spread, write
from memlab.config import BenchConfig, FormsConfig, MemoryConfig
from memlab.errors import ConfigError, suggestion
from memlab.models.base import Model
from memlab.paths import config_dir

WARM_UP = 2  # passes of each form that are not counted
VOCABULARY = 256
FORMS = ("recurrent", "parallel")


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table and return, by model, the seconds of a pass of each form and their ratio; also in `forms.json`."""
    sizes = config.forms
    models = {name: build(name, config, sizes) for name in sizes.models or names()}
    refused = [name for name, model in models.items() if model.parallel is None]
    if refused and sizes.models:
        raise ConfigError(f"forms.models={sizes.models}: {', '.join(refused)} has no parallel form")
    tokens_BSN = torch.randint(VOCABULARY, (sizes.batch_size, sizes.segments, sizes.segment_length))
    by_model = {name: compare(model, tokens_BSN, config.repeats) for name, model in models.items() if name not in refused}
    result = {"suite": "forms", **sizes.model_dump(exclude={"models"}), "repeats": config.repeats, "models": by_model, **machine()}
    write(result, table(result), config.run_dir)
    return result


def names() -> list[str]:
    """Every model that configs/model has a file of."""
    return sorted(file.stem for file in Path(config_dir(), "model").glob("*.yaml"))


def build(name: str, config: BenchConfig, sizes: FormsConfig | MemoryConfig) -> Model:
    """A model with its file's settings (or, if it is the configured one, those), at the sizes of this measurement.

    Raises:
        ConfigError: there is no such file.
    """
    file = Path(config_dir(), "model", f"{name}.yaml")
    if not file.exists():
        raise ConfigError(f"{config.suite}.models: no model is named {name!r}.{suggestion(name, names())} There are: {', '.join(names())}")
    values: dict[str, Any] = OmegaConf.to_container(OmegaConf.load(file))  # type: ignore[assignment]
    values = config.model if name == config.model["name"] else values
    arguments = schema.parameters(values["_target_"])
    own = {"width": sizes.width, "layers": sizes.layers, "heads": sizes.heads, "mem_len": sizes.segment_length, "dropout": 0.0}
    torch.manual_seed(config.seed)
    model: Model = schema.load(values["_target_"])(
        vocab_size=VOCABULARY, **{key: own.get(key, values.get(key)) for key in arguments.keys() - {"vocab_size"}}
    )
    return model.train()


def compare(model: Model, tokens_BSN: Tensor, repeats: int) -> dict[str, Any]:
    """Seconds of each pass of both forms, by turns; their ratio pass by pass; and the operations that take most time."""
    forms: dict[str, Callable[[], None]] = {form: lambda form=form: one_pass(model, form, tokens_BSN) for form in FORMS}  # type: ignore[misc]
    seconds: dict[str, list[float]] = {form: [] for form in FORMS}
    for repeat in track(range(WARM_UP + repeats), description=type(model).__name__, transient=True):
        for form, do in forms.items():
            began = time.perf_counter()
            do()
            if repeat >= WARM_UP:
                seconds[form].append(time.perf_counter() - began)
    ratios = [slow / fast for slow, fast in zip(*seconds.values(), strict=True)]
    return {"seconds": seconds, "ratio": spread(ratios), "time": {form: most_time(do) for form, do in forms.items()}}


def one_pass(model: Model, form: str, tokens_BSN: Tensor) -> None:
    """Forward and backward of the next-token loss."""
    model.zero_grad()
    logits = getattr(model, form)(tokens_BSN, model.init_state(len(tokens_BSN))).logits
    F.cross_entropy(logits.flatten(0, 2), tokens_BSN.roll(-1, dims=2).flatten()).backward()


def most_time(do: Callable[[], None], operations: int = 5) -> dict[str, float]:
    """Shares of a pass by operation, its own time without that of what it calls; the largest ones."""
    with torch.profiler.profile() as profiler:
        do()
    own = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in own)
    return {event.key: event.self_cpu_time_total / whole for event in own[:operations]}


def table(result: dict[str, Any]) -> Table:
    """The figures as a person reads them."""
    title = (
        f"forms: forward + backward, batch {result['batch_size']}, {result['segments']} segments of {result['segment_length']} tokens, "
        f"width {result['width']}, {result['layers']} layers, {result['heads']} heads; {result['repeats']} interleaved pairs"
    )
    table = Table(title=title)
    for column in ("model", "recurrent, ms", "parallel, ms", "ratio", "min", "max"):
        table.add_column(column, justify="left" if column == "model" else "right")
    captions = []
    for name, measured in result["models"].items():
        milliseconds = [f"{1000 * spread(measured['seconds'][form])['median']:.1f}" for form in FORMS]
        table.add_row(name, *milliseconds, *(f"{v:.2f}" for v in measured["ratio"].values()))
        shares = ", ".join(f"{key.removeprefix('aten::')} {share:.0%}" for key, share in measured["time"]["parallel"].items())
        captions.append(f"{name}: {shares}")
    table.caption = "Where the parallel form's time goes:\n" + "\n".join(captions)
    table.caption_justify = "left"
    return table
