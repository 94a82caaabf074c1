"""Trained runs in notebooks and scripts: `run = memlab.load(DIR)`, then `run.stream(..)`, `run.generate(..)`.

See docs/API.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memlab.config.checks import check_policy
from memlab.config.sections import Config
from memlab.errors import UserError
from memlab.evaluation import trained
from memlab.evaluation.generation import generate
from memlab.evaluation.settings import check_sampling
from memlab.files import read_object
from memlab.models.base import Model, ModelState, Open, Piece, Unread
from memlab.tasks.base import Task
from memlab.tasks.text import TextTask
from memlab.text.tokenizers import Tokenizer
from memlab.tracking import finished_runs


@dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
        directory: of the run.
        checkpoint: the file with the weights.
        step: optimizer steps before it was written.
        config: the typed configuration, `config.model["name"]`, `config.trainer.max_steps` and so on.
        task: prepared, for batches or the documents of a text.
        model: in evaluation mode, on its device.
        result: the run's `result.json`; None = the run has not finished, or the checkpoint is not in a run's
            directory.
    """

    directory: Path
    checkpoint: Path
    step: int
    config: Config
    task: Task
    model: Model
    result: dict[str, Any] | None

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Turns text into ids and back; None = the run's task is not text."""
        return self.task.tokenizer if isinstance(self.task, TextTask) else None

    @property
    def segment_length(self) -> int:
        """N, tokens after which memory is written; if segments have several lengths, the longest."""
        return max(self.task.segment_lengths)

    def encode(self, text: str) -> Tensor:
        """Token ids [1, T] of a document as the model was trained to read it, with BEGIN before it.

        Raises:
            UserError: the run's task is not text.
        """
        task = self._text("encode")
        try:
            document = text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text is not Unicode: {error}") from None
        return torch.tensor([[task.begin, *task.tokenizer.encode(document).tolist()]])

    def stream(self, tokens_BT: Tensor, state: ModelState | Open | Unread | None = None) -> Iterator[Piece]:
        """Read any number of tokens, segment by segment, in constant memory.

        This is `Model.stream` with this run's segments.

        Args:
            tokens_BT: token ids.
            state: of the last piece of an earlier call, which may have ended within a segment; None = a
                document begins.

        Returns:
            An iterator over pieces; each has `logits` and the `state` after it.

        Raises:
            UserError: `tokens_BT` is not [B, T], or has unknown ids.
        """
        if tokens_BT.dim() != 2 or tokens_BT.is_floating_point():
            raise UserError(
                f"tokens of shape {list(tokens_BT.shape)} and {tokens_BT.dtype}: stream reads whole numbers "
                "of shape [B, T]"
            )
        if (
            tokens_BT.numel()
            and not 0
            <= (low := int(tokens_BT.min()))
            <= (high := int(tokens_BT.max()))
            < self.task.vocab_size
        ):
            raise UserError(
                f"token ids from {low} to {high}: the model knows 0 to {self.task.vocab_size - 1}"
            )
        return self.model.stream(tokens_BT, state, segment_length=self.segment_length)

    def generate(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> str:
        """Continue a prompt. Time grows with the number of tokens, memory does not.

        Args:
            prompt: the beginning of a document; may be empty.
            tokens: how many tokens to generate.
            temperature: of the softmax that tokens are drawn from; 0 = always the most probable token.
            top_k: draw from this many most probable tokens; None = from all.
            seed: the same seed draws the same tokens.

        Raises:
            UserError: the run's task is not text.
            ConfigError: a value is out of bounds.
        """
        return "".join(self.write(prompt, tokens, temperature=temperature, top_k=top_k, seed=seed))

    def write(
        self,
        prompt: str = "",
        tokens: int = 200,
        *,
        temperature: float = 0.8,
        top_k: int | None = 50,
        seed: int = 0,
    ) -> Iterator[str]:
        """As `generate`, but yields the text in pieces of whole characters as they are generated."""
        wish = check_sampling(prompt, tokens, temperature, top_k, seed)
        task, model = self._text("generate"), self.model
        ids = generate(
            model,
            self.encode(prompt),
            tokens,
            self.segment_length,
            wish.temperature,
            top_k,
            seed,
            task.tokenizer.size,
        )
        return task.tokenizer.decode_each(int(drawn_B) for drawn_B in ids)

    def _text(self, what: str) -> TextTask:
        if not isinstance(self.task, TextTask):
            model, task = self.config.model["name"], self.config.task["name"]
            kind = ", and answers once per sample" if self.model.answers_once else ""
            raise UserError(
                f"{what} needs a run on text: {self.checkpoint} is model={model}, trained on "
                f"task={task}{kind}"
            )
        return self.task


def load(
    run: str | Path,
    *,
    device: str | torch.device | None = None,
    uri: str = "sqlite:///mlflow.db",
    trust: str | Sequence[str] = (),
    policy: Mapping[str, Any] | None = None,
    backbone: str | Path | None = None,
) -> Run:
    """Open a trained run, with the weights of its best checkpoint.

    Args:
        run: the directory of a finished run, a `.ckpt` file (also of an unfinished run), or an MLflow run id.
        device: for the model; None = the GPU if there is one.
        uri: of the MLflow store in which to look up a run id.
        trust: names of modules that the run may use. A run with a memory or a task of your own names its
            module, and to open the run is to import it (docs/SECURITY.md).
        policy: reads layers with full attention through a bounded cache (docs/POLICIES.md), such as
            `{"name": "h2o", "budget": 256}`; None = as trained.
        backbone: where the pretrained weights are, beside which a memory was trained (trainer.train=memory
            or lora); None = where they were then.

    Raises:
        ConfigError: there is no such policy or option, or no layer for a policy.
        UserError: there is no such run, it has not finished, its checkpoint is damaged or of another version,
            the text of its task or its backbone is missing, or it names a module that is not in `trust`.
    """
    found = finished_runs.find(str(run), uri)
    place = trained.choose_device("auto") if device is None else torch.device(device)
    if policy is not None:
        check_policy(policy)
    opened = trained.load(found, place, trusted=trust, policy=policy, backbone=backbone)
    file = found.directory / "result.json"
    result = read_object(file) if file.is_file() else None
    return Run(
        found.directory, found.checkpoint, opened.step, opened.config, opened.task, opened.model, result
    )


def untrained(config: Config, device: torch.device) -> Run:
    """Open a pretrained model that no run has trained, to generate text.

    Args:
        config: of a text task, as `memlab.train` would have it.
        device: for the model.

    Raises:
        UserError: the weights or the tokenizer cannot be read, or do not fit into memory.
    """
    opened = trained.fresh(config, device, reads=False)
    return Run(
        opened.found.directory, opened.found.checkpoint, 0, opened.config, opened.task, opened.model, None
    )
