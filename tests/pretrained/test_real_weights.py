"""SmolLM2 and MiniLM, as they are (`tests/pretrained/fetch.py`), against transformers in float32."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from memlab.config.compose_model import model_values
from memlab.evaluation.generation import generate
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.pretrained.loading import load
from tests.pretrained.fetch import MINILM, SMOLLM2, place
from tests.pretrained.test_families import both_ways
from tests.tasks.test_text import SHARED

pytestmark = pytest.mark.xdist_group(__name__)


def fetched(name: str) -> Path:
    found = place(name)
    if found is None:
        pytest.skip(f"{name} has not been fetched")
    return found


def ours(path: Path, preset: str, *words: str) -> Model:
    values = model_values(preset, ["backbone=pretrained", f"backbone.path={path}", *words])
    model = compose(values, 2)
    load(model, values)
    return model.eval()


@torch.no_grad()
def test_smollm2_reads_a_book_and_writes_as_in_transformers() -> None:
    path, books = fetched(SMOLLM2), sorted((SHARED / "pg19" / "validation").glob("*.txt"))
    if not books:
        pytest.skip("the shared data are not here")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    reference = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    text = books[0].read_text(encoding="utf-8")[10_000:14_000]
    ids = AutoTokenizer.from_pretrained(**where)(text, return_tensors="pt").input_ids[:, :512]
    model = ours(path, "transformer", "model.context=full")
    expected = reference(ids).logits
    actual = torch.cat([piece.logits for piece in model.stream(ids, segment_length=200)], dim=1)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-3)
    prompt = ids[:, :40]
    written = torch.stack(list(generate(model, prompt, 12, 64)), dim=1)
    theirs = reference.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert torch.equal(written, theirs[:, 40:])


_LOAD = """
import resource, sys, time
from memlab.config.compose_model import model_values
from memlab.models.compose import compose
from memlab.models.pretrained.loading import load
began = time.process_time()
values = model_values("transformer", ["backbone=pretrained", f"backbone.path={sys.argv[1]}"])
model = compose(values, 2)
load(model, values)
print(time.process_time() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_loading_smollm2_takes_seconds_and_little_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LOAD, str(fetched(SMOLLM2))], capture_output=True, text=True, check=True
    )
    seconds, memory = map(float, done.stdout.split())
    assert seconds < 10 and memory < 1.3e9, done.stdout


@torch.no_grad()
def test_minilm_has_the_hidden_states_of_transformers() -> None:
    path = fetched(MINILM)
    from transformers import BertModel, BertTokenizerFast

    text = "Mary went to the kitchen. John travelled to the garden. Where is Mary?"
    ids = BertTokenizerFast.from_pretrained(path)(text, return_tensors="pt").input_ids
    expected = BertModel.from_pretrained(path).eval()(ids).last_hidden_state
    model = ours(path, "rmt_encoder")
    torch.testing.assert_close(both_ways(model, ids), expected, rtol=0, atol=1e-4)
    assert torch.equal(model.tokens.class_token_D, model.backbone.embed.weight[ids[0, 0]])
