"""Batches of a text task as text: batch rows, documents, segments and padding."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from memlab.tasks.text import TextTask
from memlab.terminal.tables import PlainConsole
from memlab.text.batches import StreamBatch

LONGEST = 320  # characters of a segment that are printed
STEPS = 2000  # to search for the end of a document


def print_pieces(
    task: TextTask,
    name: str,
    split: Literal["train", "validation", "test"],
    seed: int,
    samples: int,
    about: str,
) -> None:
    """Print the first step of some batch rows, and a step of one of them in which a document ends.

    Args:
        samples: number of batch rows.
        about: description of the task.

    Raises:
        UserError: there is no text.
    """
    task.prepare()
    console = PlainConsole(highlight=False)
    segments, length = task.num_segments, task.segment_lengths[0]
    console.print(
        f"[bold]{escape(name)}[/], {split}: {task.batch_size} rows, in a step each reads {segments} segments "
        f"of {length} tokens; {task.vocab_size} token ids",
        soft_wrap=True,
    )
    console.print(Text(about, style="dim"))
    if split != "train":
        amounts = task.amounts(split)
        console.print(
            f"{amounts.documents:,} documents, {amounts.bytes:,} bytes, {amounts.words:,} words, "
            f"{amounts.tokens:,} tokens"
            + (f", {amounts.lost_bytes:,} bytes not given back" if amounts.lost_bytes else ""),
            soft_wrap=True,
        )
    rows = range(min(samples, task.batch_size if split == "train" else task.evaluation_rows(split)))
    batches = task.training(seed, rows) if split == "train" else task.evaluation(split, rows)
    first = next(batches)
    for row in rows:
        _print_row(console, task, first, row, 1)
    if found := _ending(first, batches):
        _print_row(console, task, *found)


def _ending(first: StreamBatch, batches: Iterator[StreamBatch]) -> tuple[StreamBatch, int, int] | None:
    """The first later batch in which a document ends, the batch row, and the number of the step."""
    length = first.segment_lengths[0]
    for step, batch in enumerate(islice(batches, STEPS), start=2):
        counted = batch.counts_BT.reshape(len(batch.counts_BT), -1, length).sum(axis=2)
        ends = (counted < length) & (counted > 0)
        if ends.any():
            return batch, int(ends.any(axis=1).argmax()), step
    return None


def _print_row(console: Console, task: TextTask, batch: StreamBatch, row: int, step: int) -> None:
    console.print(f"\n[bold]row {row}, step {step}[/]")
    length = batch.segment_lengths[0]
    for segment in range(len(batch.segment_lengths)):
        part = slice(segment * length, (segment + 1) * length)
        counts = batch.counts_BT[row, part]
        targets = batch.targets_BT[row, part][counts].tolist()
        padding = length - len(targets)
        line = Text(f"segment {segment + 1:<4}", style="dim")
        if batch.begins_BS[row, segment]:
            line.append("a document begins  ", style="bold green")
        if targets:
            offset = int(batch.offset_BS[row, segment])
            line.append(f"tokens {offset:,} to {offset + len(targets) - 1:,}  ")
        if padding:
            line.append(f"{padding} of padding", style="yellow")
        line.rstrip()
        console.print(line, soft_wrap=True)
        text = task.tokenizer.decode(targets).replace("\n", "⏎").replace("\r", "␍").replace("\t", "⇥")
        if text:
            more = f" … {len(text) - LONGEST} more characters" if len(text) > LONGEST else ""
            console.print(Text(f"    {text[:LONGEST]}").append(more, style="dim"), soft_wrap=True)
