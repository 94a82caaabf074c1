"""Words that a command cannot take, and words that look wrong and are not."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable
from math import inf, nan
from pathlib import Path

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from memlab.config import cli, composing, jobs, overrides
from memlab.config.checks import check, check_show
from memlab.config.paths import config_dir
from memlab.errors import ConfigError, UserError
from memlab.evaluation.settings import check_generate
from memlab.sweep import gather
from memlab.sweeping import space
from memlab.sweeping.order import Order
from memlab.sweeping.plan import Plan, check_sweep
from tests.config.test_jobs import Run, Runs
from tests.mistakes.starting import Start

BIG = str(2**32)
NO_STEPS = "a range of numbers without steps has no list of values"
NO_HYDRA = "memlab does not read Hydra's own settings; "
QUOTE = "Quote it, in quotes that the shell leaves: "

# command and words: the decisive part of the message
REFUSED = {
    # sweeps that no list of jobs can be made of
    ("train", "-m optim.lr=interval(1e-4,1e-2)"): f"optim.lr=interval(1e-4,1e-2): {NO_STEPS}",
    ("train", "-m optim.lr=tag(log,interval(1e-4,1e-2))"): NO_STEPS,
    ("train", "optim.lr=interval(1e-4,1e-2)"): NO_STEPS,
    ("train", "-m model=glob(zz*)"): "model=glob(zz*): there is no such value, so no run would begin",
    ("train", "-m seed=glob(*)"): "seed=glob(*): ",
    ("train", "-m seed=range(3,3)"): "seed=range(3,3): there is no such value",
    ("train", "-m seed=tag(t,1,2)"): "cannot read 'seed=tag(t,1,2)'",
    ("train", "-m seed=choice()"): "empty choice is not legal",
    ("train", "-m seed=shuffle()"): "seed=shuffle(): there is no such value",
    ("train", "-m seed=range(a)"): "str is incompatible with Union[int, float]",
    ("train", "-m model=glob(rn*)"): "no run would begin",
    ("train", "model=glob(*)"): "model=glob(*): several values are several runs; add --multirun",
    ("train", "seed=range(0,3)"): "several values are several runs; add --multirun",
    ("train", "-m experiment=copy,reverse"): "each is a sweep of its own",
    # settings of Hydra's
    ("train", "hydra.run.dir=x"): f"hydra.run.dir=x: {NO_HYDRA}run_dir=DIR says where a run is kept",
    ("train", "-m hydra.sweep.dir=x seed=1,2"): f"hydra.sweep.dir=x: {NO_HYDRA}run_dir=DIR",
    ("train", "hydra.output_subdir=x"): f"{NO_HYDRA}run_dir=DIR",
    ("train", "hydra.searchpath=[x]"): f"{NO_HYDRA}--config-dir DIR adds a folder of YAML files",
    ("train", "hydra/launcher=joblib"): f"{NO_HYDRA}memlab starts the jobs of --multirun itself",
    ("train", "hydra/sweeper=optuna"): "memlab.sweep searches",
    ("train", "hydra.mode=MULTIRUN"): "--multirun starts several jobs",
    ("train", "+hydra.job.chdir=true"): NO_HYDRA,
    ("evaluate", "hydra.run.dir=x run=y"): f"hydra.run.dir=x: {NO_HYDRA}",
    ("compare", "hydra.verbose=true experiment=copy"): NO_HYDRA,
    ("train", "--config-name x"): "--config-name",
    ("train", "--experimental-rerun x"): "memlab reads no pickled configuration",
    # characters of the grammar
    ("train", "run_dir=~/x"): f"""cannot read 'run_dir=~/x': .*{QUOTE}'run_dir="~/x"'""",
    ("train", "run_dir=/data/münchen"): f"""{QUOTE}'run_dir="/data/münchen"'""",
    ("train", "task.data_dir=/data/文"): f"""{QUOTE}'task.data_dir="/data/文"'""",
    ("train", "run_dir=/data/a(1)"): f"""{QUOTE}'run_dir="/data/a(1)"'""",
    ("train", "run_dir=/data/a[1]"): f"""{QUOTE}'run_dir="/data/a[1]"'""",
    ("train", "run_dir=a#b"): f"""{QUOTE}'run_dir="a#b"'""",
    ("train", "run_dir=a=b"): f"""{QUOTE}'run_dir="a=b"'""",
    ("evaluate", "run=~/x"): f"""{QUOTE}'run="~/x"'""",
    ("compare", "out=a&b"): f"""{QUOTE}'out="a&b"'""",
    ("train", "run_dir=a,b"): """add --multirun, or quote it if it is one value: 'run_dir="a,b"'""",
    ("train", "seed=nosuch(3)"): "cannot read 'seed=nosuch(3)'",
    ("train", "=3"): "cannot read '=3': a word is KEY=VALUE",
    ("train", "three"): "cannot read 'three': a word is KEY=VALUE",
    ("train", "a{b}=3"): "cannot read 'a{b}=3': 'a{b}' is not the name of a key",
}


@pytest.mark.parametrize("given", REFUSED, ids=" ".join)
def test_a_word_is_refused_in_one_message(given: tuple[str, str], start: Start) -> None:
    command, words = given
    message, part = start.message(command, *words.split()), REFUSED[given]
    beginning, _, rest = part.partition(".*")
    assert beginning in message and rest in message, message


WORK = {
    "model=glob(rmt*)": ["model=rmt", "model=rmt_encoder", "model=rmt_xl"],
    "model=glob([rmt*,infini],exclude=rmt_*)": ["model=infini", "model=rmt"],
    "seed=shuffle(1,2,3)": ["seed=1", "seed=2", "seed=3"],
    "seed=shuffle(range(1,4))": ["seed=1", "seed=2", "seed=3"],
    "seed=sort(3,1,2)": ["seed=1", "seed=2", "seed=3"],
    "seed=sort(3,1,2,reverse=true)": ["seed=1", "seed=2", "seed=3"],
    "seed=range(1,4)": ["seed=1", "seed=2", "seed=3"],
    "seed=tag(mine,choice(1,2))": ["seed=1", "seed=2"],
    "optim.betas=[0.9,0.95],[0.9,0.99]": ["optim.betas=[0.9,0.95]", "optim.betas=[0.9,0.99]"],
    "seed=int(3.0)": ["seed=int(3.0)"],
}


@pytest.mark.parametrize("word", WORK)
def test_functions_of_hydra_make_jobs(word: str) -> None:
    with composing.composing():
        given = overrides.parse([word, "task.length=12"], composing.loader())
        found = list(overrides.jobs(given))
    assert sorted(job[0] for job in found) == WORK[word]
    assert all(job[1:] == ["task.length=12"] for job in found)


# --- numbers

KINDS: dict[str, Callable[[DictConfig], object]] = {
    "train": check,
    "show": check_show,
    "generate": check_generate,
}
NUMBERS = {
    ("train", "seed", 2**32): f"seed={BIG}: input should be less than {BIG}",
    ("train", "seed", 2**64): "input should be less than",
    ("train", "seed", -1): "seed=-1: input should be greater than or equal to 0",
    ("show", "seed", 2**32): f"seed={BIG}: input should be less than {BIG}",
    ("generate", "seed", 2**32): f"seed={BIG}: input should be less than {BIG}",
    ("train", "optim.lr", inf): "optim.lr=inf: input should be a finite number",
    ("train", "optim.lr", nan): "optim.lr=nan: input should be a finite number",
    ("train", "optim.lr", 0.0): "optim.lr=0.0: input should be greater than 0",
    ("train", "optim.weight_decay", inf): "optim.weight_decay=inf: input should be a finite number",
    ("train", "optim.gradient_clip", inf): "optim.gradient_clip=inf: input should be a finite number",
    ("train", "optim.betas", (0.9, nan)): "input should be a finite number",
    ("train", "model.dropout", nan): "model.dropout=nan: input should be a finite number",
    ("train", "trainer.stop_at_accuracy", nan): "trainer.stop_at_accuracy=nan: input should be a finite",
    ("generate", "temperature", inf): "temperature=inf: input should be a finite number",
    ("train", "run_dir", "~no.such.user/x"): "run_dir='~no.such.user/x': no home directory is known",
}


@pytest.fixture(scope="module")
def composed() -> Callable[[str], DictConfig]:
    """The configuration of a command with its own defaults, composed once."""

    @functools.cache
    def of(command: str) -> DictConfig:
        if command == "generate":  # it has no groups
            made = OmegaConf.load(Path(config_dir(), "generate.yaml"))
            assert isinstance(made, DictConfig)
            made.run = "x"
            return OmegaConf.masked_copy(made, [key for key in made if key not in ("defaults", "hydra")])
        with composing.composing():
            return composing.compose_job(command, [])

    return of


@pytest.mark.parametrize("given", NUMBERS, ids=lambda given: " ".join(map(str, given)))
def test_a_number_has_bounds(given: tuple[str, str, object], composed: Callable[[str], DictConfig]) -> None:
    command, key, value = given
    config = copy.deepcopy(composed(command))
    KINDS[command](config)
    OmegaConf.update(config, key, list(value) if isinstance(value, tuple) else value)
    with pytest.raises(ConfigError) as caught:
        KINDS[command](config)
    assert NUMBERS[given] in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_learning_rate_beyond_all_numbers(start: Start) -> None:
    assert start.message("train", "optim.lr=1e400") == "optim.lr=inf: input should be a finite number"


def test_multirun_of_any_command_leaves_nothing_behind(start: Start) -> None:
    assert len(start.begun("evaluate", "-m", "run=a,b").jobs) == 2
    assert len(start.begun("compare", "-m", "experiment=a,b").jobs) == 2
    assert list(start.place.iterdir()) == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with a model of one's own."""
    folder = tmp_path / "own"
    (folder / "model").mkdir(parents=True)
    text = Path(config_dir(), "model", "rmt.yaml").read_text()
    (folder / "model" / "mine.yaml").write_text(text.replace("name: rmt\n", "name: mine\n"))
    return folder


def test_jobs_get_the_folder_of_ones_own_files(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until its end this is the real thing; the jobs are programs that print their words."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        sys, "argv", ["memlab.train", "-m", "--config-dir", "own", "model=mine,rmt", "seed=1"]
    )
    monkeypatch.setattr(sys, "stdout", sys.stdout)
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    monkeypatch.setenv("MEMLAB_MULTIRUN", "")  # the command sets it for its jobs
    runs = Runs(Run(0), Run(0))
    monkeypatch.setattr(jobs, "Starter", runs)
    with pytest.raises(SystemExit) as ended:
        cli.run("train", lambda composed: None, lambda config: pytest.fail("a job ran here"))
    assert ended.value.code == 0
    assert list(tmp_path.iterdir()) == [own]
    folder = ["--config-dir", str(own)]
    assert runs.words == [[*folder, "model=mine", "seed=1"], [*folder, "model=rmt", "seed=1"]]


def test_a_glob_knows_ones_own_files(own: Path, start: Start) -> None:
    found = start.begun("train", "-m", "--config-dir", "own", "model=glob([mine,infini])").jobs
    assert found == [["model=infini"], ["model=mine"]]


FOLDERS = {
    "--config-dir nosuch model=rmt": "--config-dir nosuch: there is no such folder",
    "--config-dir own model=mien": "no model is named 'mien'. Did you mean 'mine'?",
    "-m --config-dir own model=mine,mien": "no model is named 'mien'. Did you mean 'mine'?",
    "--config-dir own model=copied": "copied.yaml",
    "model=mine": "no model is named 'mine'",
}


@pytest.mark.parametrize("words", FOLDERS)
def test_mistakes_with_a_folder_of_ones_own(words: str, own: Path, start: Start) -> None:
    if "copied" in words:  # a name that memlab has: which of the two would be meant?
        words = words.replace("copied", "rmt")
        (own / "model" / "rmt.yaml").write_text((own / "model" / "mine.yaml").read_text())
        part = "memlab has a file model/rmt.yaml itself; give yours another name"
    else:
        part = FOLDERS[words]
    assert part in start.message("train", *words.split())


# --- sweeps


def sweep(tmp_path: Path, folder: Path | None = None, **changes: object) -> Plan:
    """The plan of a small sweep over lists."""
    values: dict[str, object] = {
        "base": {"model": "rmt", "task": "reverse", "trainer.max_steps": 20},
        "space": {"optim.betas": {"type": "categorical", "choices": [[0.9, 0.95], ["9e-1", 0.98]]}},
        "objectives": [{"metric": "val/score", "direction": "maximize"}],
        "budget": {"trials": 4},
        **changes,
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    more = [] if folder is None else [f"config_dir={folder}"]
    words = gather([f"sweep={tmp_path / 'mine.yaml'}", "tracking=off", *more])
    made: Plan = cli.compose_checked("sweep", words, check_sweep)
    return made


def test_choices_may_be_lists(tmp_path: Path) -> None:
    import optuna

    plan = sweep(tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    given = set()
    for _ in range(8):
        trial = study.ask()
        chosen = space.suggest(plan.spec, None, trial)
        study.tell(trial, 0.0)
        assert space.parameters(plan.spec, study.trials[-1]) == chosen
        given.add(str(chosen["optim.betas"]))
    assert given == {"[0.9, 0.95]", "[0.9, 0.98]"}
    order = Order(
        spec=plan.spec, study="s", storage="", run_dir="r", trials=1, since=[0], max_steps=1, config_dir="own"
    )
    words = order.words(None, {"optim.betas": [0.9, 0.98]}, 0, Path("r"))
    assert words[:2] == ["--config-dir", "own"] and "optim.betas=[0.9,0.98]" in words


SWEEPS = {
    "a choice twice": (
        {"space": {"optim.betas": {"type": "categorical", "choices": [[0.9, 0.95], [0.9, 0.95]]}}},
        "space.optim.betas: a choice is there twice",
    ),
    "a list of the wrong length": (
        {"space": {"optim.betas": {"type": "categorical", "choices": [[0.9], [0.9, 0.95]]}}},
        "optim.betas",
    ),
    "a seed": ({"seeds": [2**32]}, f"input should be less than {BIG}"),
    "a seed of the end": ({"final": {"seeds": [2**32]}}, f"final.seeds.0={BIG}: input should be less than"),
    "hours": ({"budget": {"trials": 1, "hours": float("inf")}}, "budget.hours=inf: input should be a finite"),
    "a rate": (
        {"space": {"optim.lr": {"type": "categorical", "choices": [1e-3, float("inf")]}}},
        "a finite number",
    ),
    "a model that is in no folder": (
        {"base": {"model": "mine", "task": "reverse"}},
        "no model is named 'mine'",
    ),
}


@pytest.mark.parametrize("name", SWEEPS)
def test_mistakes_in_a_sweep(name: str, tmp_path: Path) -> None:
    changes, part = SWEEPS[name]
    with pytest.raises(UserError) as caught:
        sweep(tmp_path, **changes)  # type: ignore[arg-type]
    assert part in str(caught.value) and "\n" not in str(caught.value), caught.value


def test_a_sweep_over_a_model_of_ones_own(own: Path, tmp_path: Path, start: Start) -> None:
    base = {"model": "mine", "task": "reverse", "trainer.max_steps": 20}
    assert sweep(tmp_path, own, base=base).config.config_dir == str(own)
    plan = start.begun("sweep", "--config-dir", "own", "sweep=mine.yaml", "tracking=off").config
    assert isinstance(plan, Plan) and plan.config.config_dir == str(own)
