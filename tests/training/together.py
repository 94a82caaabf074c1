"""Trains some models in one pair of processes, and writes what each logged; see test_together.py.

python -m tests.training.together DIRECTORY double|single
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from memlab.config import launch, lifetime, schema
from memlab.config.checks import check
from memlab.config.compose_model import model_values
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.memory_tokens.base import MemoryTokens
from memlab.models import choices

WHERE = {"cpu": "single", "ddp": "ddp", "fsdp": "fsdp"}  # trainer=...: trainer.strategy

COMMON = [
    "model.width=16",
    "model.heads=2",
    "model.layers=2",
    "model.dropout=0.0",
    "task.batch_size=8",
    "trainer.precision=64-true",
    "trainer.max_steps=12",
    "trainer.val_every=5",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.stop_at_accuracy=null",
    "optim.lr=0.01",
    "optim.warmup_steps=1",
    "tracking=off",
]
# uneven, and shared by two processes
SAMPLES = ["task.validation_size=15", "task.test_size=15", "curriculum.stage_steps=5"]
# the first stage has one segment: not all parameters take part
COPY = ["task=copy", "task.length=9", "task.num_segments=3", *SAMPLES]
PAIRS = ["task=associative_retrieval", "task.num_segments=2", *SAMPLES]
SMALL = {
    "rmt": ["model.memory_tokens=3"],
    "rmt_encoder": ["model.memory_tokens=3"],
    "transformer_xl": ["model.mem_len=4"],
    "memorizing": ["model.mem_len=4", "model.memory_size=16", "model.top_k=4"],
}


# What is trained in the default run of the tests, and in the slow one.
DDP = (
    ["rmt", "infini_delta", "text rmt", "rmt lora"],
    ["transformer", "transformer_xl", "rmt_encoder", "memorizing", "text transformer_xl"],
)
PARTS = (["text rmt"], ["rmt"])  # with trainer.accumulate
RECOMPUTED = ([("text rmt", "segment")], [("rmt", "segment"), ("infini_delta", "block")])
MOVED = (["text rmt"], ["rmt"])  # from one to another of these, after so many steps:
STATIONS = ["cpu", "ddp", "fsdp", "cpu", "fsdp", "ddp", "cpu"]
STOPS = [2, 4, 6, 8, 9, 11]
# in single precision
IN_SINGLE = ["trainer.precision=32-true", "task.batch_size=32", "trainer.max_steps=20"]
ISSUE = ["transformer", "transformer_xl", "rmt", "rmt_encoder", "infini_delta", "memorizing"]


def trainings(corpus: Path) -> dict[str, list[str]]:
    """The overrides of each, by name: every model there is, and some on text."""
    names = sorted(file.stem for file in Path(config_dir(), "model").glob("*.yaml"))
    every = {
        name: [f"model={name}", *SMALL.get(name, []), *(PAIRS if answers_once(name) else COPY)]
        for name in names
    }
    text = [
        "task=text",
        f"task.data_dir={corpus}",
        "task.segment_length=8",
        "task.num_segments=2",
        "trainer.stop_at_accuracy=null",
    ]
    every["rmt in windows"] = [*every["rmt"], "model.bptt_depth=1"]
    every["text rmt"] = ["model=rmt", *SMALL["rmt"], *text]
    # the same sizes in all processes
    mixed = ["curriculum=mixed", "trainer.recompute=segment", "curriculum.stage_steps=5"]
    every["rmt mixed"] = ["model=rmt", *SMALL["rmt"], *COPY, *mixed]
    every["text rmt mixed"] = ["model=rmt", *SMALL["rmt"], *text, *mixed]
    every["infini_delta blocks"] = ["model=infini_delta", *COPY, "trainer.recompute=block"]
    lora = ["layer_memory=infini", "trainer.train=lora", "lora.rank=3"]
    every["rmt lora"] = [*every["rmt"], *lora]
    every["text transformer_xl"] = ["model=transformer_xl", *SMALL["transformer_xl"], *text]
    return every


def answers_once(name: str) -> bool:
    """Whether a preset is an encoder."""
    kind: type[MemoryTokens] = schema.load(choices.choose(model_values(name)).tokens)
    return kind.bidirectional


def config(words: list[str], run_dir: Path, trainer: str, *more: str, **values: Any) -> Config:
    """Of a training in one process (trainer=cpu) or in two; `values` are other keys of the trainer."""
    found = _composed(*words, *more)
    changed = {
        "accelerator": "cpu",
        "strategy": WHERE[trainer],
        "devices": 1 if trainer == "cpu" else 2,
        **values,
    }
    return found.model_copy(
        update={"run_dir": str(run_dir), "trainer": found.trainer.model_copy(update=changed)}
    )


@functools.cache
def _composed(*words: str) -> Config:
    keys = {word.partition("=")[0] for word in words}
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check(
            compose(
                "train",
                [*(word for word in COMMON if word.partition("=")[0] not in keys), "trainer=ddp", *words],
            )
        )


def train(config: Config, join: Any = None) -> None:
    """Without figures, which take longer than the rest."""
    from memlab.training import run

    run.draw = lambda *_: None  # type: ignore[assignment]
    run.print_summary = lambda *_: None
    run.train(config, None, (), join)


class Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


def stop(config: Config, at: int, join: Any = None) -> None:
    """Train, and stop in the step after this one."""
    with replaced("training_step", at, stopping):
        try:
            train(config, join)
        except Stopped:
            return
    raise AssertionError("it did not stop")


def stopping(*_: Any) -> None:
    raise Stopped


@contextlib.contextmanager
def replaced(name: str, at: int, other: Any) -> Iterator[None]:
    """In the step after this one, the module does something else, which gets what it would have done."""
    from memlab.training.module import TrainingModule

    original = getattr(TrainingModule, name)

    def method(self: Any, *args: Any) -> Any:
        return other(self, original, *args) if self.global_step == at else original(self, *args)

    setattr(TrainingModule, name, method)
    try:
        yield
    finally:
        setattr(TrainingModule, name, original)


def losses(run_dir: Path) -> list[dict[str, float]]:
    """All that was logged but for speeds and times, and then the test's metrics."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines.append(json.loads((run_dir / "result.json").read_text())["metrics"])
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def double(directory: Path, processes: Any) -> None:
    """In double precision, so that only a mistake makes a difference."""

    def both(config: Config) -> None:
        train(config, lambda _: processes)

    every = trainings(directory / "corpus")
    with held(directory / "held.json", processes):
        for name, words in every.items():
            both(config(words, directory / "fsdp" / name, "fsdp"))
    words = [*every["text rmt"], "model.dropout=0.2", "trainer.checkpoint_every=4"]
    both(config(words, directory / "dropout" / "whole", "fsdp"))
    stop(config(words, directory / "dropout" / "resumed", "fsdp"), 9, lambda _: processes)
    both(config(words, directory / "dropout" / "resumed", "fsdp").model_copy(update={"resume": "auto"}))
    for strategy in ("ddp", "fsdp"):
        diverged(config(every["rmt"], directory / "diverged" / strategy, strategy), processes)
    some(0, directory, processes)


def some(which: int, directory: Path, processes: Any) -> None:
    """The default (0) or the slow part (1) of what there is a choice of."""

    def both(config: Config) -> None:
        train(config, lambda _: processes)

    every = trainings(directory / "corpus")
    for name in DDP[which]:
        both(config(every[name], directory / "ddp" / name, "ddp"))
    for name in PARTS[which]:
        both(config(every[name], directory / "ddp in 2 parts" / name, "ddp", accumulate=2))
        both(config(every[name], directory / "fsdp in 4 parts" / name, "fsdp", accumulate=4))
    for name, again in RECOMPUTED[which]:
        both(config(every[name], directory / f"fsdp, {again}s again" / name, "fsdp", recompute=again))
    for name in MOVED[which]:
        place = directory / "moved" / name
        for number, (station, at) in enumerate(zip(STATIONS, [*STOPS, None], strict=True)):
            there = config(every[name], place, station, checkpoint_every=1)
            there = there.model_copy(update={"resume": "auto" if number else "never"})
            join = None if station == "cpu" else lambda _: processes
            if station != "cpu" or processes.leads:
                train(there, join) if at is None else stop(there, at, join)
            processes.sum(0)  # all are here


@contextlib.contextmanager
def held(file: Path, processes: Any) -> Iterator[None]:
    """Write down which share of all weights and of the optimizer's state this process holds."""
    from torch.distributed.tensor import DTensor

    from memlab.training.sharding import ShardedStrategy

    original = ShardedStrategy.optimizer_state
    shares = []

    def optimizer_state(self: Any, optimizer: Any) -> Any:
        states = [
            value for values in optimizer.state.values() for name, value in values.items() if name != "step"
        ]
        for tensors in ([p for group in optimizer.param_groups for p in group["params"]], states):
            assert all(isinstance(t, DTensor) for t in tensors)
            shares.append(sum(t.to_local().numel() for t in tensors) / sum(t.numel() for t in tensors))
        return original(self, optimizer)

    ShardedStrategy.optimizer_state = optimizer_state  # type: ignore[method-assign]
    yield
    ShardedStrategy.optimizer_state = original  # type: ignore[method-assign]
    everyone = processes.gather((min(shares), max(shares)))
    if processes.leads:
        file.write_text(json.dumps(everyone))


def diverged(config: Config, processes: Any) -> None:
    """One process's loss is not a number: both stop."""
    from memlab.training.finite import DivergedError
    from memlab.training.processes import Followed

    def broken(module: Any, original: Any, *args: Any) -> Any:
        return original(module, *args) * (1.0 if processes.leads else float("nan"))

    try:
        with replaced("step_loss", 9, broken):
            train(config, lambda _: processes)
    except DivergedError as error:
        assert processes.leads
        (Path(config.run_dir) / "told").write_text(str(error))
        return
    except Followed:
        assert not processes.leads
        return
    raise AssertionError("it did not stop")


def single(directory: Path, processes: Any) -> None:
    """In the precisions that people use; and the slow part in double precision."""
    some(1, directory, processes)
    every = trainings(directory / "corpus")
    for name in ISSUE:
        for strategy in ("ddp", "fsdp"):
            train(
                config([*every[name], *IN_SINGLE], directory / "32-true" / strategy / name, strategy),
                lambda _: processes,
            )
    for name in ("rmt", "infini_delta"):
        for strategy in ("ddp", "fsdp"):
            words = [*every[name], "trainer.precision=bf16-mixed"]
            train(config(words, directory / "bf16-mixed" / strategy / name, strategy), lambda _: processes)


def main() -> None:
    """Two processes that find themselves where torchrun would have put them. The second is a fork: torch and
    lightning are imported once.
    """
    warnings.simplefilter("error")
    import lightning.pytorch  # noqa: F401

    from memlab.training import run  # noqa: F401

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    os.environ |= {**where, **sizes}
    first = os.getpid()
    second = os.fork()
    os.environ |= dict.fromkeys(("RANK", "LOCAL_RANK"), "0" if second else "1")
    if second:
        work()
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(second, 0)[1]))
    lifetime.end_with(first)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    os._exit(status)


def work() -> None:
    directory = Path(sys.argv[1])
    place = launch.find("ddp", None, 1, "cpu")
    with launch.others(place, [], threads=1) as others:
        from memlab.training.processes import Processes

        processes = Processes.join(place, others, gpu=False)
        {"double": double, "single": single}[sys.argv[2]](directory, processes)
        Processes.leave()


if __name__ == "__main__":
    main()
