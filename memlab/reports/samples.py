"""Samples of a task as text."""

from __future__ import annotations

import sys

from rich.markup import escape
from rich.text import Text

from memlab.config.checks import build_task
from memlab.config.sections import ShowConfig
from memlab.reports.text_samples import print_pieces
from memlab.tasks.base import SyntheticTask
from memlab.tasks.text import TextTask
from memlab.terminal.tables import PlainConsole

NOTHING = "·"  # a target that does not count


def print_samples(config: ShowConfig) -> None:
    """Print the tokens of each segment of each sample, and below them the targets that count.

    For text tasks, print the first batches.

    Raises:
        UserError: a text task's documents cannot be read.
    """
    task = build_task(config)
    if isinstance(task, TextTask):
        print_pieces(
            task, config.task["name"], config.split, config.seed, config.samples, first_paragraph(type(task))
        )
        return
    assert isinstance(task, SyntheticTask)
    console = PlainConsole(highlight=False)
    console.print(
        f"[bold]{escape(config.task['name'])}[/], {config.split}: {task.num_segments} segments of "
        f"{list(task.segment_lengths)} tokens; {task.answer_tokens} answer tokens; chance {task.chance:.3f}",
        soft_wrap=True,
    )
    console.print(Text(first_paragraph(type(task)), style="dim"))
    batch = task.batch(config.split, 0, config.samples, config.seed)
    for index in range(config.samples):
        console.print(f"\n[bold]sample {index}[/]")
        reads = [task.word(token) for token in batch.tokens_BT[index].tolist()]
        targets = batch.targets_BT[index].tolist()
        answers = [
            task.word(token) if counts else NOTHING
            for token, counts in zip(targets, batch.answer_BT[index], strict=True)
        ]
        width = max(map(len, [*reads, *answers]))
        room = max(1, (console.width - 22) // (width + 1))
        at = 0
        for number, length in enumerate(task.segment_lengths, start=1):
            for start in range(at, at + length, room):
                part = slice(start, min(start + room, at + length))
                name = f"segment {number}" if start == at else ""
                for what, words, style in (("reads", reads[part], ""), ("answers", answers[part], "green")):
                    line = Text(f"{name if what == 'reads' else '':<12}{what:<9}", style="dim")
                    for word in words:
                        line.append(
                            f"{word:>{width}} ", style="dim" if word == NOTHING else style or "not dim"
                        )
                    line.rstrip()
                    if what == "reads" or any(word != NOTHING for word in words):
                        console.print(line, soft_wrap=True)
            at += length


def first_paragraph(task: type) -> str:
    """The first paragraph of the docstring of a task's file."""
    description = sys.modules[task.__module__].__doc__ or ""
    return " ".join(description.split("\n\n")[0].split())
