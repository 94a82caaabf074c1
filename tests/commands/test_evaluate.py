"""`memlab.evaluate` on trained runs: the training's own figures at its own length, what is kept,
and what is a mistake.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from memlab.config import cli
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.errors import UserError
from memlab.evaluation import inside, lengths, memory
from memlab.evaluation.accuracy import free_running
from memlab.evaluation.settings import EvaluateConfig, check_evaluate
from memlab.reports.evaluation.command import evaluate
from memlab.tracking import resume as resuming
from memlab.tracking.stored_runs import StoredRun, from_directory
from memlab.training.build import build
from memlab.training.run import train
from tests.evaluation.test_documents import text

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

SMALL = [
    "task=copy",
    "task.length=6",
    "task.num_segments=3",
    "task.batch_size=8",
    "task.validation_size=16",
    "task.test_size=40",
]
SIZES = ["model.width=16", "model.heads=2", "model.layers=1", "trainer.max_steps=6", "trainer.threads=1"]


def configuration(place: Path, *words: str) -> Config:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        store = [] if "tracking=off" in words else [f"tracking.uri=sqlite:///{place}/mlflow.db"]
        return check(compose("train", [*SIZES, f"run_dir={place / 'run'}", *store, *words]))


def asked(run: object, *words: str) -> EvaluateConfig:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check_evaluate(compose("evaluate", [f"run={run}", "threads=1", "accelerator=cpu", *words]))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, dict[str, Any]]:
    """A small run, in MLflow."""
    config = configuration(tmp_path_factory.mktemp("trained"), *SMALL, "model.memory_tokens=4")
    return config, train(config)


@pytest.fixture
def run(trained: tuple[Config, dict[str, Any]], tmp_path: Path) -> Path:
    """A copy of it, without MLflow, to change."""
    left = shutil.ignore_patterns("evaluation.json*", "run.json", "accuracy_by_segments.png", ".lock")
    shutil.copytree(trained[0].run_dir, tmp_path / "run", ignore=left)
    return tmp_path / "run"


def test_same_length_is_the_training_s_test_and_others_are_their_own(
    trained: tuple[Config, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    config, result = trained
    directory = Path(config.run_dir)
    store = config.tracking.uri  # type: ignore[union-attr]
    words = ["lengths=[3,2,7]", "controls=[memory_off,shuffled]", f"tracking.uri={store}"]
    found = evaluate(asked(result["mlflow_run_id"], *words))  # by its id
    assert json.loads((directory / "evaluation.json").read_text()) == found
    assert [entry["segments"] for entry in found["lengths"]] == [2, 3, 7]
    same = found["lengths"][1]
    for name in ("accuracy", "accuracy_teacher_forced", "exact_match", "loss"):
        assert same[name] == pytest.approx(result["metrics"][f"test/{name}"], abs=1e-6)
    assert same["memory"] == result["memory"]
    for entry in found["lengths"]:
        for figures in (entry, *entry["controls"].values()):
            for name, (low, high) in figures["intervals"].items():
                assert 0 <= low <= figures[name] <= high <= 1 and low < high

    parts = build(config)  # the longest, once more by hand
    parts.module.load_state_dict(
        torch.load(directory / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    )
    parts.model.eval()
    task = parts.task.at(7)  # type: ignore[attr-defined]
    batch = task.batch("test", 0, 40)
    predicted = free_running(
        parts.model,
        torch.from_numpy(batch.tokens_BT.copy()),
        batch.answer_BT[0].tolist(),
        task.segment_lengths,
    )  # type: ignore[arg-type]
    right = predicted == torch.from_numpy(batch.targets_BT.copy())[:, task.answer_positions()]
    assert found["lengths"][2]["accuracy"] == pytest.approx(right.double().mean().item())
    assert found["lengths"][2]["memory"] == memory.measure(parts.model, task.segment_lengths).to_dict()
    assert found["cost"]["parameters"] == result["parameters"]

    from mlflow import MlflowClient

    client = MlflowClient(store)
    for name, of in (
        ("accuracy_by_segments", lambda e: e["accuracy"]),
        ("accuracy_by_segments_shuffled", lambda e: e["controls"]["shuffled"]["accuracy"]),
    ):
        history = client.get_metric_history(result["mlflow_run_id"], f"eval/{name}")
        assert {(m.step, m.value) for m in history} == {
            (entry["segments"], of(entry)) for entry in found["lengths"]
        }
    artifacts = {file.path for file in client.list_artifacts(result["mlflow_run_id"], "figures")}
    assert {"figures/accuracy_by_segments.png", "figures/memory_by_tokens.png"} <= artifacts
    said = capsys.readouterr().out
    assert (
        "trained up to 3 segments" in said
        and "shuffled" in said
        and str(directory / "evaluation.json") in said
    )


def test_what_is_known_is_not_computed_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: list[tuple[int, int]] = []
    measure = lengths.measure

    def counted(model: Any, task: Any, samples: int, conditions: Any) -> dict[str, Any]:
        measured.append((task.num_segments, samples))
        if task.num_segments == 9:
            raise KeyboardInterrupt
        return measure(model, task, samples, conditions)

    monkeypatch.setattr(lengths, "measure", counted)
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked(run, "lengths=[2,3,9,4]", "samples=8"))
    first = evaluate(asked(run, "lengths=[2,3,4]", "samples=8"))
    assert measured == [(2, 8), (3, 8), (9, 8), (4, 8)]
    assert evaluate(asked(run, "lengths=[4,2]", "samples=8")) == first and len(measured) == 4

    # a control that is missing
    more = evaluate(asked(run, "lengths=[2]", "samples=8", "controls=[memory_off]"))
    assert measured[4:] == [(2, 8)]
    assert {**more["lengths"][0], "controls": {}}["accuracy"] == first["lengths"][0]["accuracy"]
    evaluate(asked(run, "lengths=[2]", "samples=8"))
    assert measured[5:] == []

    both = evaluate(asked(run, "lengths=[2]", "samples=16"))["lengths"]  # another key is another entry
    assert [(e["segments"], e["samples"]) for e in both] == [(2, 8), (2, 16), (3, 8), (4, 8)]
    again = evaluate(asked(run, "lengths=[2]", "samples=8", "again=true"))["lengths"]
    assert measured[5:] == [(2, 16), (2, 8)] and len(again) == 4
    assert again[0]["controls"].keys() == {"memory_off"}, "a control that was known is kept"
    capsys.readouterr()


def test_by_default_the_trained_length_and_twice_as_many_within_a_budget(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(asked(run, "max_tokens=900"))
    assert [(e["segments"], e["samples"]) for e in found["lengths"]] == [(3, 40), (6, 25)]  # 18 and 36 tokens
    assert "25*" in capsys.readouterr().out


def test_a_checkpoint_by_itself(run: Path, tmp_path: Path) -> None:
    (run / "result.json").unlink()  # unfinished: its checkpoints can be evaluated one by one
    with pytest.raises(UserError, match=r"has not finished .*run=.*best\.ckpt"):
        evaluate(asked(run))
    inside = evaluate(asked(run / "checkpoints" / "last.ckpt", "lengths=[2]", "samples=8"))
    assert inside["run"] == str(run) and inside["lengths"][0]["checkpoint"] == "last.ckpt"
    shutil.copy(run / "checkpoints" / "last.ckpt", tmp_path / "mine.ckpt")
    outside = evaluate(asked(tmp_path / "mine.ckpt", "lengths=[2]", "samples=8"))
    assert outside["run"] == str(tmp_path / "mine.evaluation")
    assert outside["lengths"][0]["accuracy"] == inside["lengths"][0]["accuracy"]


def altered(run: Path, change: Any) -> Path:
    """A checkpoint with something changed."""
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, run / "checkpoints" / "best.ckpt")
    return run


def test_a_checkpoint_of_another_version(run: Path) -> None:
    altered(run, lambda c: c["memlab"].update(version="7.1.0"))
    evaluate(asked(run, "lengths=[2]", "samples=8"))  # as long as it fits, why not
    name = "model.tokens.initial_memory_MD"
    altered(run, lambda c: c["state_dict"].update({"model.other": c["state_dict"].pop(name)}))
    with pytest.raises(
        UserError,
        match=r"written by memlab 7\.1\.0, this is .* weights do not fit: Missing key.*initial_memory_MD",
    ):
        evaluate(asked(run, "lengths=[4]"))
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("memory_tokens:", "slots:"))
    with pytest.raises(
        UserError, match=r"written by memlab 7\.1\.0, .*configuration does not fit: .*model\.slots"
    ):
        evaluate(asked(run, "lengths=[4]"))
    (run / "config.yaml").write_text(config.replace("layer_memory: attention", "layer_memory: gone"))
    with pytest.raises(UserError, match=r"configuration does not fit: .*model\.layer_memory=gone"):
        evaluate(asked(run, "lengths=[4]"))


def test_a_run_of_memlab_0_1(run: Path, tmp_path: Path) -> None:
    """Its weights are refused in one message, as a run, as a checkpoint alone,
    and when it shall be resumed.
    """
    text = (run / "config.yaml").read_text()
    target = "_target_: memlab.models.rmt.RMT"
    (run / "config.yaml").write_text(text.replace("model:\n", f"model:\n  {target}\n", 1))
    told = r"was written by memlab 0\.1 \(model\._target_=memlab\.models\.rmt\.RMT\).*Train the run again"

    def earlier(checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"]["config"]["model"]["_target_"] = "memlab.models.rmt.RMT"

    altered(run, earlier)
    with pytest.raises(UserError, match=rf"run.checkpoints.best\.ckpt {told}"):
        evaluate(asked(run))
    shutil.copy(run / "checkpoints" / "best.ckpt", tmp_path / "mine.ckpt")
    with pytest.raises(UserError, match=rf"mine\.ckpt {told}"):
        evaluate(asked(tmp_path / "mine.ckpt"))
    words = [*SMALL, "model.memory_tokens=4", "tracking=off"]
    for resume, place in ((str(run), []), ("auto", [f"run_dir={run}"])):
        with initialize_config_dir(config_dir(), version_base="1.3"):
            config = check(compose("train", [*SIZES, *words, f"resume={resume}", *place]))
        with pytest.raises(UserError, match=told):
            resuming.find(config)
    compared = from_directory(run)
    assert isinstance(compared, StoredRun) and compared.config["model.name"] == "rmt", (
        "results stay comparable"
    )


def test_a_run_from_before_some_keys(run: Path) -> None:
    young = (
        "accumulate",
        "checkpoint_every",
        "devices",
        "experiment_file",
        "num_nodes",
        "recompute",
        "strategy",
        "test",
    )
    lines = (run / "config.yaml").read_text().splitlines(keepends=True)
    (run / "config.yaml").write_text(
        "".join(line for line in lines if line.strip().partition(":")[0] not in young)
    )
    evaluate(asked(run, "lengths=[2]", "samples=8"))


def test_what_cannot_be_evaluated(run: Path, tmp_path: Path, trained: tuple[Config, dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"no such directory or file, and it is no MLflow run id"):
        evaluate(asked(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"there is no run here \(.*config\.yaml is missing\)"):
        evaluate(asked(tmp_path))
    with pytest.raises(UserError, match="no checkpoint"):
        evaluate(asked(run / "config.yaml"))
    with pytest.raises(UserError, match="there is no MLflow store"):
        evaluate(asked("0" * 32, f"tracking.uri=sqlite:///{tmp_path}/none.db"))
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(UserError, match="has no such run"):
        evaluate(asked("0" * 32, f"tracking.uri={trained[0].tracking.uri}"))  # type: ignore[union-attr]
    for words, said in (
        (["samples=1", "controls=[shuffled]"], "samples=1: controls=.shuffled. .* needs 2"),
        (["documents=3"], "documents=3: task=copy has samples"),
        (["stream=100"], "stream=100: at least 65536"),
    ):
        with pytest.raises(UserError, match=said):
            evaluate(asked(run, *words))
    best = run / "checkpoints" / "best.ckpt"
    best.write_bytes(best.read_bytes()[:-50])
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        evaluate(asked(run))
    best.unlink()
    with pytest.raises(UserError, match=r"checkpoint is gone"):
        evaluate(asked(run))
    assert (
        not (run / "evaluation.json").exists() and not (run / "figures" / "accuracy_by_segments.png").exists()
    )


def test_unequal_segments_do_not_say_how_to_grow(tmp_path: Path) -> None:
    train(
        configuration(
            tmp_path,
            *SMALL,
            "tracking=off",
            "task.segment_lengths=[6,8,4]",
            "curriculum=off",
            "model.memory_tokens=4",
        )
    )
    with pytest.raises(UserError, match=r"task\.segment_lengths=\[6, 8, 4\] are not equal"):
        evaluate(asked(tmp_path / "run", "lengths=[5]"))


def test_looking_inside(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(asked(run, "inside=5", "lengths=[3,4]"))["inside"]
    assert [(e["segments"], e["samples"]) for e in found] == [(3, 5), (4, 5)]
    for name in ("memory_tokens", "similarity"):
        for segments in (3, 4):
            assert (run / "figures" / f"inside_{name}_{segments}_segments.png").stat().st_size > 5000
    said = capsys.readouterr().out
    assert "memory tokens, layer 1" in said and "layer 0" not in said
    monkeypatch.setattr(inside, "look", None)
    assert evaluate(asked(run, "inside=5"))["inside"] == found, "what is known is not computed again"
    with pytest.raises(UserError, match="inside=5 has no use for samples=3"):
        asked(run, "inside=5", "samples=3")


def test_gates_and_retrieval_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "model=memorizing",
        "model.mem_len=2",
        "model.memory_layer=1",
        "tracking=off",
        "trainer.log_every=2",
    ]
    train(configuration(tmp_path, *SMALL, *words))
    figures = tmp_path / "run" / "figures"
    assert (figures / "gates.png").is_file()
    evaluate(asked(tmp_path / "run", "inside=4"))
    drawn = {file.name for file in figures.glob("inside_*")}
    assert drawn == {f"inside_{name}_3_segments.png" for name in ("remembered", "gated", "retrieval")}
    said = capsys.readouterr().out
    assert "not shown: similarity of layer 1: its state grows with the document" in said


def test_a_stream_and_its_figure(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = evaluate(asked(run, "stream=65536"))
    (entry,) = found["streams"]
    assert [p["tokens"] for p in entry["points"]] == [32_772, 65_538]  # whole segments of 6 tokens
    assert entry["memory_ratio"] == entry["at_end"]["peak_memory"] / entry["at_32k"]["peak_memory"] < 1.2
    assert (run / "figures" / "streaming.png").is_file() and "speed ×" in capsys.readouterr().out
    assert evaluate(asked(run, "stream=65536")) == found


def test_text_by_position(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = text(tmp_path / "data", [50, 31])
    words = [
        "task=text",
        f"task.data_dir={task.data_dir}",
        "task.segment_length=6",
        "task.num_segments=4",
        "task.batch_size=1",
    ]
    result = train(
        configuration(tmp_path, *words, "task.test_bytes=20", "model.memory_tokens=4", "curriculum=off")
    )
    found = evaluate(asked(tmp_path / "run", "controls=[memory_off]"))
    (entry,) = found["texts"]
    for name in ("loss", "bits_per_byte", "perplexity", "word_perplexity"):
        assert entry[name] == pytest.approx(result["metrics"][f"test/{name}"], rel=1e-5)
    longer = evaluate(asked(tmp_path / "run", "bytes=1000"))["texts"]
    assert [(e["bytes"], e["tokens"]) for e in longer] == [(20, 40), (1000, 81)]
    assert [r["from"] for r in longer[1]["by_position"]] == [0, 6, 12, 24, 48]
    with pytest.raises(UserError, match=r"lengths=\[2\]: task=text is text"):
        evaluate(asked(tmp_path / "run", "lengths=[2]"))
    assert "loss by position" in capsys.readouterr().out

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(result["mlflow_run_id"], "eval/loss_by_position")
    assert {m.step for m in history} == {0, 6, 12, 24, 48}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing"),
        (["run=x", "lengths=[0]"], "lengths"),
        (["run=x", "lengths=[2,2]"], "given twice"),
        (["run=x", "controls=[off]"], "controls"),
        (["run=x", "stream=70000", "lengths=[2]"], "no use for lengths"),
        (["run=x", "lenghts=[1]"], "Did you mean 'lengths'"),
        (["run=x"], "no such directory"),
    ],
)
def test_mistakes(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from memlab.evaluate import job

    monkeypatch.setattr(sys, "argv", ["memlab.evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("evaluate", check_evaluate, lambda config: job(config))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
