"""Write the model of a run as a directory of safetensors."""

from __future__ import annotations

from pathlib import Path

import torch

from memlab.config.sections import Config
from memlab.errors import UserError
from memlab.evaluation import trained
from memlab.evaluation.settings import ExportConfig
from memlab.files import check_place
from memlab.models.pretrained import writing
from memlab.models.pretrained.describing import folder, identity_of
from memlab.tasks.text import TextTask
from memlab.text.tokenizers import SavedTokenizer
from memlab.tracking import finished_runs


def export(config: ExportConfig) -> str:
    """Write the model, and return what was written, in a sentence.

    Raises:
        UserError: there is no such run, or the directory is not empty or cannot be written.
    """
    target = Path(config.to).absolute()
    check_place(f"to={config.to}", target)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"to={config.to} is not empty; give a new directory")
    found = finished_runs.find(config.run, config.tracking.uri)
    run = trained.load(found, torch.device("cpu"), trusted=config.trust)
    if config.dtype is not None:
        run.model.to(getattr(torch, config.dtype))
    values = run.config.model
    try:
        target.mkdir(parents=True, exist_ok=True)
        if (family := writing.theirs(run.model, values)) is not None:
            writing.write_theirs(run.model, values, family, target)
            said = f"transformers opens it, as {family}"
        else:
            writing.write_ours(run.model, _whole(run.config).model_dump(), run.step, target)
            said = "memlab.load opens it; transformers has no such model"
        _tokenizer(run, target)
    except OSError as error:
        raise UserError(f"to={config.to} cannot be written: {error.strerror or error}") from None
    return f"written to  {target}: {said}"


def _whole(config: Config) -> Config:
    """The configuration of a model all of whose weights are there, whatever of them the run trained."""
    return config.model_copy(update={"trainer": config.trainer.model_copy(update={"train": "all"})})


def _tokenizer(run: trained.Trained, target: Path) -> None:
    """Add the tokenizer: the pretrained model's own files, or that of the run's text."""
    known = identity_of(run.config.model)
    if (
        known is not None
        and known.family != "memlab"
        and writing.copy_tokenizer(folder(run.config.model), target)
    ):
        return
    if isinstance(run.task, TextTask) and isinstance(run.task.tokenizer, SavedTokenizer):
        run.task.tokenizer.tokenizer.save(str(target / "tokenizer.json"))
