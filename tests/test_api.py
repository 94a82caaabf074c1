"""`memlab.load`: a run as it was left, read in pieces, and writing; the examples of docs/API.md;
what is a mistake.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

import memlab
from memlab import generate as command
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.errors import ConfigError, UserError
from memlab.evaluation.generation import draw, generate
from memlab.text.tokenizers import ByteTokenizer, SavedTokenizer
from tests import small
from tests.training import resuming

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

VOCAB = 13
DOCUMENT = "It was a dark and stormy night; the rain fell in torrents, “except” at occasional intervals. " * 3


@pytest.fixture(scope="module")
def text_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RMT on bytes, a few steps."""
    place = tmp_path_factory.mktemp("text")
    for split in ("train", "validation", "test"):
        (place / split).mkdir()
        (place / split / "a.txt").write_text(DOCUMENT, encoding="utf-8")
    sizes = [
        "model.width=16",
        "model.heads=2",
        "model.layers=1",
        "task.segment_length=8",
        "task.num_segments=2",
        "task.batch_size=1",
    ]
    words = [
        "task=text",
        f"task.data_dir={place}",
        "trainer.precision=64-true",
        "trainer.max_steps=4",
        "trainer.threads=1",
        "tracking=off",
    ]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check(compose("train", ["model=rmt", *sizes, *words, f"run_dir={place / 'run'}"]))
    resuming.train(config)
    return place / "run"


@pytest.fixture(scope="module")
def run(text_run: Path) -> memlab.Run:
    return memlab.load(text_run, device="cpu")


def test_load_gives_what_the_run_left(run: memlab.Run, text_run: Path) -> None:
    saved = torch.load(text_run / "checkpoints" / "best.ckpt", weights_only=True)
    for name, value in run.model.state_dict().items():
        assert torch.equal(value, saved["state_dict"][f"model.{name}"])
    assert not run.model.training and run.step == saved["global_step"]
    assert run.result == json.loads((text_run / "result.json").read_text())
    assert run.config.model["name"] == "rmt" and run.segment_length == 8
    assert isinstance(run.tokenizer, ByteTokenizer)
    assert run.encode("aé").tolist() == [[256, 97, 0xC3, 0xA9]]


def test_load_a_checkpoint_alone(text_run: Path, run: memlab.Run, tmp_path: Path) -> None:
    shutil.copy(text_run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    alone = memlab.load(str(tmp_path / "mine.ckpt"), device="cpu")
    assert alone.result is None and alone.checkpoint == tmp_path / "mine.ckpt"
    assert alone.generate("It was", 9) == run.generate("It was", 9)


def test_examples_of_the_documentation(text_run: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "API.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) >= 4
    names = {"DIR": str(text_run)}
    for block in blocks:
        exec(compile(block, "docs/API.md", "exec"), names)


def naive(run: memlab.Run, prompt: str, tokens: int) -> str:
    """Everything is read again from the document's beginning for each token."""
    ids = run.encode(prompt)[0].tolist()
    start = len(ids)
    for _ in range(tokens):
        state = run.model.init_state(1)
        for at in range(0, len(ids), 8):
            output = run.model.segment(torch.tensor([ids[at : at + 8]]), state)
            state = output.state
        ids.append(int(output.logits[0, -1, :256].argmax()))
    return bytes(ids[start:]).decode(errors="replace")


@pytest.mark.parametrize("prompt", ["", "It was ", "It was a dark and st", "one more than sixteen"])
def test_greedy_is_reading_everything_again(run: memlab.Run, prompt: str) -> None:
    assert run.generate(prompt, 30, temperature=0) == naive(run, prompt, 30)


@pytest.mark.parametrize("name", ["rmt", "memory_transformer", "segment", "full"])
def test_each_token_is_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the choices are those of the logits of one reading of it all; two rows do not disturb each
    other.
    """
    model = small.build(name, VOCAB).eval()
    read, extend = [], type(model).extend

    def counted(self: object, tokens_Bn: torch.Tensor, *rest: object) -> object:
        read.append(tokens_Bn.shape[1])
        return extend(self, tokens_Bn, *rest)  # type: ignore[arg-type]

    prompt = torch.randint(VOCAB, (2, 6))
    with monkeypatch.context() as patch:
        patch.setattr(type(model), "extend", counted)
        written = torch.stack(list(generate(model, prompt, 21, 4)), 1)
    assert read[-20:] == [1] * 20 and sum(read) <= 6 + 20
    document = torch.cat([prompt, written], 1)
    logits = torch.cat([p.logits for p in model.stream(document, segment_length=4)], 1)
    assert torch.equal(written, logits[:, 5:-1].argmax(-1))
    assert torch.equal(torch.stack(list(generate(model, prompt[1:], 21, 4)), 1), written[1:])


def test_sampling(run: memlab.Run) -> None:
    first, again, other = (
        run.generate("It was", 40, temperature=1.0, top_k=None, seed=seed) for seed in (3, 3, 4)
    )
    assert first == again != other
    assert run.generate("It was", 40, temperature=1.0, top_k=1, seed=5) == run.generate(
        "It was", 40, temperature=0
    )
    assert run.generate("It was", 40, temperature=1e-300) == run.generate("It was", 40, temperature=0)
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0]]).double().expand(20000, -1)
    drawn = draw(logits, 0.5, 3, torch.Generator().manual_seed(0))
    share = torch.bincount(drawn, minlength=4) / 20000
    wanted = torch.tensor([0.0, 4.0, 2.0, -torch.inf]).softmax(0)
    torch.testing.assert_close(share, wanted, atol=0.015, rtol=0)
    assert share[3] == 0


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_pieces_of_text_are_whole_characters(kind: str, tmp_path: Path) -> None:
    text = "naïve – 思い出 🙂 end"
    if kind == "bytes":
        tokenizer: ByteTokenizer | SavedTokenizer = ByteTokenizer()
    else:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers

        alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
        saved = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
        saved.pre_tokenizer, saved.decoder = (
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )  # type: ignore[assignment]
        saved.save(str(tmp_path / "tokenizer.json"))
        tokenizer = SavedTokenizer(tmp_path / "tokenizer.json")
    ids = tokenizer.encode(text.encode()).tolist()
    pieces = list(tokenizer.decode_each(ids))
    assert "".join(pieces) == text and len([p for p in pieces if p]) == len(text)
    half = ids[:3]  # the first byte of ï is the last
    assert "".join(tokenizer.decode_each(half)) == tokenizer.decode(half) == "na\ufffd"


def test_mistakes(run: memlab.Run, text_run: Path, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory or file"):
        memlab.load(tmp_path / "nothing")
    samples = memlab.load(whole, device="cpu")
    assert samples.tokenizer is None
    for ask in (lambda: samples.generate("a"), lambda: samples.encode("a")):
        with pytest.raises(UserError, match=r"needs a run on text: .*model=\w+, trained on task=copy"):
            ask()
    encoder = small.build("rmt_encoder", VOCAB)
    with pytest.raises(UserError, match="answers once per sample"):
        dataclasses.replace(samples, model=encoder).generate("a")
    wrong: list[tuple[dict[str, object], str]] = [
        ({"tokens": 0}, "tokens=0"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_k": 0}, "top_k=0"),
        ({"seed": -1}, "seed=-1"),
        ({"prompt": 7}, "prompt=7"),
    ]
    for values, told in wrong:
        with pytest.raises(ConfigError, match=told):
            run.generate(**values)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not Unicode"):
        run.generate("\ud800")
    with pytest.raises(UserError, match=r"shape \[3\]"):
        run.stream(torch.tensor([1, 2, 3]))
    with pytest.raises(UserError, match="knows 0 to 256"):
        run.stream(torch.tensor([[1, 257]]))
    open = list(run.model.stream(torch.tensor([[1, 2, 3]]), segment_length=8))[-1].state
    with pytest.raises(UserError, match="has 3 tokens already"):
        list(run.model.stream(torch.tensor([[1]]), open, segment_length=3))


@pytest.mark.parametrize(
    "prompt",
    ["It was", "a, b: {c} [d] 'e' \"f\" = 1, $", "1984", "", "null", "a\\", 'say "yes', "\n\ttab", "é,"],
)
def test_command(
    prompt: str,
    run: memlab.Run,
    text_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Any prompt is taken as it stands."""
    words = [
        f"run={text_run}",
        f"prompt={prompt}",
        "tokens=9",
        "temperature=1.5",
        "top_k=null",
        "seed=3",
        "accelerator=cpu",
        "threads=1",
    ]
    monkeypatch.setattr(sys, "argv", ["memlab.generate", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert not ended.value.code
    assert (
        capsys.readouterr().out
        == prompt + run.generate(prompt, 9, temperature=1.5, top_k=None, seed=3) + "\n"
    )


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["tokens=5"], "run is missing"),
        (["run=x", "top_k=0"], "top_k=0"),
        (["run=x", "temperature=warm"], "temperature='warm'"),
    ],
)
def test_command_mistakes(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memlab.generate", *words])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 2 and told in capsys.readouterr().err


def test_import_is_light() -> None:
    code = (
        "import sys, memlab, memlab.train, memlab.generate; assert 'torch' not in sys.modules; assert "
        "'load' in dir(memlab)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = memlab.lod  # type: ignore[attr-defined]
