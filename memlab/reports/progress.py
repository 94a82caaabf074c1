"""The text of a training's progress bar and log lines, made from plain metrics."""

from __future__ import annotations

from collections.abc import Mapping


def stage(progress: Mapping[str, float], stages: int, mixed: bool) -> str:
    """The stage of a curriculum, such as '2/4 (length 12, 2 segments)'.

    If sizes are mixed, '2/4 (up to length 12, 2 segments)'.

    Args:
        progress: `curriculum/stage`, `curriculum/segments` and, if samples have one, `curriculum/length`.
        stages: number of stages.
        mixed: whether training also uses the sizes of earlier stages.
    """
    number, segments = int(progress["curriculum/stage"]), int(progress["curriculum/segments"])
    length = f"length {int(progress['curriculum/length'])}, " if "curriculum/length" in progress else ""
    most = "up to " * (mixed and number > 1)
    return f"{number}/{stages} ({most}{length}{segments} segment{'s' * (segments > 1)})"


def place(progress: Mapping[str, float], stages: int, mixed: bool) -> str:
    """How far the training is: the stage, and for text the tokens trained on."""
    tokens = progress.get("train/tokens")
    parts = [f"stage {stage(progress, stages, mixed)}"] if stages > 1 or tokens is None else []
    return ", ".join([*parts, *([f"{int(tokens):,} tokens"] if tokens is not None else [])])


def step(metrics: Mapping[str, float]) -> str:
    """The last step, in addition to its loss: its accuracy, if it has one."""
    return f"accuracy {metrics['train/accuracy']:.3f}" if "train/accuracy" in metrics else ""


def validation(metrics: Mapping[str, float], headline: str) -> str:
    """The result of a validation.

    Args:
        metrics: with their split, such as `val/accuracy`.
        headline: the metric that comes first, without its split.
    """
    value = metrics[f"val/{headline}"]
    if headline == "accuracy" and "val/accuracy_teacher_forced" in metrics:
        return f"accuracy {value:.4f}  (teacher-forced {metrics['val/accuracy_teacher_forced']:.4f})"
    if headline == "bits_per_byte" and "val/perplexity" in metrics:
        return f"{value:.4f} bits per byte  (perplexity {metrics['val/perplexity']:.2f})"
    return f"{headline.replace('_', ' ')} {value:.4f}"
