"""Run under torchrun: trains some models in one pair of processes, and writes what each logged. See test_ddp.py.

torchrun --nproc-per-node 2 -m tests.training.together DIRECTORY
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from memlab import launch
from memlab.config import Config, check
from memlab.paths import config_dir

COMMON = [
    "model.width=16",
    "model.heads=2",
    "model.layers=2",
    "model.dropout=0.0",
    "task.batch_size=8",
    "trainer.precision=64-true",
    "trainer.max_steps=20",
    "trainer.val_every=8",
    "trainer.log_every=1",
    "trainer.threads=1",
    "trainer.stop_at_accuracy=null",
    "optim.lr=0.01",
    "optim.warmup_steps=1",
    "tracking=off",
]
SAMPLES = ["task.validation_size=15", "task.test_size=15", "curriculum.stage_steps=8"]  # uneven, and shared by two processes
COPY = ["task=copy", "task.length=9", "task.num_segments=3", *SAMPLES]  # the first stage has one segment: not all parameters take part
PAIRS = ["task=associative_retrieval", "task.num_segments=2", *SAMPLES]
SMALL = {
    "rmt": ["model.memory_tokens=3"],
    "rmt_encoder": ["model.memory_tokens=3"],
    "transformer_xl": ["model.mem_len=4"],
    "memorizing": ["model.mem_len=4", "model.memory_size=16", "model.top_k=4"],
}


RESUMED = ["rmt", "text rmt", "text transformer_xl"]  # in another number of processes


def trainings(corpus: Path) -> dict[str, list[str]]:
    """The overrides of each, by name."""
    text = ["task=text", f"task.data_dir={corpus}", "task.segment_length=8", "task.num_segments=2", "trainer.stop_at_accuracy=null"]
    every = {name: [f"model={name}", *SMALL.get(name, []), *COPY] for name in ("transformer", "transformer_xl", "rmt")}
    every |= {name: [f"model={name}", *SMALL.get(name, []), *COPY] for name in ("infini_delta", "memorizing")}
    every["rmt_encoder"] = ["model=rmt_encoder", *SMALL["rmt_encoder"], *PAIRS]
    every["text rmt"] = ["model=rmt", *SMALL["rmt"], *text]
    mixed = ["curriculum=mixed", "trainer.recompute=segment", "curriculum.stage_steps=8"]  # the same sizes in all processes
    every["rmt mixed"] = ["model=rmt", *SMALL["rmt"], *COPY, *mixed]
    every["text rmt mixed"] = ["model=rmt", *SMALL["rmt"], *text, *mixed]
    every["infini_delta blocks"] = ["model=infini_delta", *COPY, "trainer.recompute=block"]
    every["text transformer_xl"] = ["model=transformer_xl", *SMALL["transformer_xl"], *text]
    return every


def config(words: list[str], run_dir: Path, trainer: str, *more: str) -> Config:
    keys = {word.partition("=")[0] for word in [*words, *more]}
    common = [word for word in COMMON if word.partition("=")[0] not in keys]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        composed = check(compose("train", [*common, *words, *more, f"trainer={trainer}"]))
    return composed.model_copy(update={"run_dir": str(run_dir)})


def train(config: Config, join: Any = None) -> None:
    """Without figures, which take longer than the rest."""
    from memlab.training import run

    run.draw = lambda *_: None  # type: ignore[assignment]
    run.print_summary = lambda *_: None
    run.train(config, None, (), join)


class Stopped(BaseException):
    """Stands for a kill: nothing catches it."""


def stop(config: Config, join: Any = None) -> None:
    """Train, and stop in step 11, behind the checkpoint of step 8."""
    from memlab.training.answering import AnsweringModule
    from memlab.training.reading import ReadingModule

    originals = {kind: kind.training_step for kind in (AnsweringModule, ReadingModule)}

    def training_step(self: Any, *args: Any) -> Any:
        if self.global_step == 10:
            raise Stopped
        return originals[type(self)](self, *args)

    try:
        for kind in originals:
            kind.training_step = training_step  # type: ignore[method-assign]
        train(config, join)
    except Stopped:
        return
    finally:
        for kind, original in originals.items():
            kind.training_step = original  # type: ignore[method-assign]
    raise AssertionError("it did not stop")


def losses(run_dir: Path) -> list[dict[str, float]]:
    """All that was logged but for speeds and times, and then the test's metrics."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    lines.append(json.loads((run_dir / "result.json").read_text())["metrics"])
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def main() -> None:
    warnings.simplefilter("error")
    directory = Path(sys.argv[1])
    place = launch.find("ddp", None, 1, "cpu")
    with launch.others(place, [], threads=1) as others:
        from memlab.training.processes import Processes

        processes = Processes.join(place, others, gpu=False)
        for name, words in trainings(directory / "corpus").items():
            train(config(words, directory / "ddp" / name, "ddp"), lambda _: processes)
        for name in RESUMED:
            words = trainings(directory / "corpus")[name]
            stop(config(words, directory / "two to one" / name, "ddp"), lambda _: processes)
            again = config(words, directory / "one to two" / name, "ddp").model_copy(update={"resume": "auto"})
            train(again, lambda _: processes)
        Processes.leave()


if __name__ == "__main__":
    main()
