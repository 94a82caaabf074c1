"""Tiny random models of transformers, one or more of each family, in float64.

Some of their modules compute in float32 whatever the weights are; here these are replaced by the same
formulas in float64, so that equality can be tested to the last digits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from memlab.config.compose_model import model_values
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.pretrained.loading import load

VOCABULARY = 23
_LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 18,  # not heads x head_dim
    "intermediate_size": 14,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 4,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 3.0,
    "original_max_position_embeddings": 40,
    "rope_theta": 50.0,
}
# name: class of transformers, its configuration
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_LLAMA, "tie_word_embeddings": True}),
    "llama3": ("Llama", {**_LLAMA, "attention_bias": True, "mlp_bias": True, "rope_parameters": _LLAMA3}),
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": 16}),
    "qwen2": (
        "Qwen2",
        {**_LLAMA, "head_dim": 6, "hidden_size": 24, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "tie_word_embeddings": True},
    ),
    "qwen3": ("Qwen3", _LLAMA),
    "gpt2": (
        "GPT2",
        {"vocab_size": VOCABULARY, "n_positions": 30, "n_embd": 20, "n_layer": 3, "n_head": 5, "n_inner": 14},
    ),
    "bert": (
        "Bert",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": 20,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "intermediate_size": 14,
            "max_position_embeddings": 30,
        },
    ),
}
DECODERS = [name for name in CASES if name != "bert"]


class ExactNorm(nn.Module):
    """RMS normalisation in the type of its input."""

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.weight, self.eps = norm.weight, norm.variance_epsilon

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + self.eps).sqrt() * self.weight


class ExactRotary(nn.Module):
    """Cosines and sines in the type of the input, by the formulas of transformers."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        scaling, width = config.rope_parameters, config.head_dim
        self.frequencies = []
        for k in range(0, width, 2):
            frequency = scaling["rope_theta"] ** (-k / width)
            if scaling["rope_type"] == "llama3":
                frequency = _llama3(frequency, scaling)
            self.frequencies.append(frequency)

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angle = position_ids[..., None] * torch.tensor(2 * self.frequencies, dtype=torch.float64)
        return angle.cos().to(x.dtype), angle.sin().to(x.dtype)


def _llama3(frequency: float, scaling: dict[str, Any]) -> float:
    wavelength, original = 2 * math.pi / frequency, scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    if wavelength < original / high:
        return frequency
    if wavelength > original / low:
        return frequency / float(scaling["factor"])
    smooth = (original / wavelength - low) / (high - low)
    return float((1 - smooth) * frequency / scaling["factor"] + smooth * frequency)


def reference(name: str) -> Any:
    """A model of transformers with noise on every parameter: gains of 1 and biases of 0 hide mistakes."""
    return made(*CASES[name])


def made(kind: str, options: dict[str, Any]) -> Any:
    """The same, of another configuration."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options)
    model = getattr(transformers, f"{kind}{_HEAD[kind]}")(config)
    model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


_HEAD = {"GPT2": "LMHeadModel", "Bert": "Model"} | dict.fromkeys(
    ("Llama", "Mistral", "Qwen2", "Qwen3"), "ForCausalLM"
)


def exact(model: Any) -> Any:
    """The same model with float64 throughout."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                setattr(module, name, ExactNorm(child))
            elif type(child).__name__.endswith("RotaryEmbedding"):
                setattr(module, name, ExactRotary(model.config))
    return model


def save(name: str, folder: Path, **how: Any) -> Any:
    """Write the model as transformers does, and return it, exact."""
    model = reference(name)
    model.save_pretrained(folder, **how)
    return exact(model)


def ours(folder: Path, preset: str = "transformer", *words: str, vocab_size: int = 2) -> Model:
    """Our model of a directory, as a command line would compose it, in float64."""
    values = model_values(preset, ["backbone=pretrained", f"backbone.path={folder}", *words])
    torch.manual_seed(0)
    model = compose(values, vocab_size)
    load(model, {**values, "dtype": "float64"})
    return model.eval()


def tokens(*shape: int) -> Tensor:
    """Token ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(3))
