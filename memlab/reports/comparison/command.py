"""The comparison command: from runs to files on disk and, for an experiment, in its MLflow store."""

from __future__ import annotations

import re
import shlex
import sys
import webbrowser
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from memlab.config.sections import CompareConfig
from memlab.errors import UserError, suggestion
from memlab.files import exists
from memlab.reports.comparison import page, tables
from memlab.reports.comparison.groups import Comparison
from memlab.reports.comparison.runs import sort
from memlab.terminal import tables as terminal
from memlab.terminal.plain import markdown
from memlab.tracking import mlflow_client, mlflow_store, multirun, stored_runs
from memlab.tracking.mlflow_client import SQLITE, absolute_uri
from memlab.tracking.stored_runs import LeftOut, StoredRun
from memlab.version import __version__

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_BEGIN = "python -m memlab.train --multirun experiment=copy"


def compare(config: CompareConfig) -> Comparison:
    """Read, compare, print, and write `index.html`, `table.md`, `groups.csv`, `runs.csv` and `figures/`.

    Raises:
        UserError: there is no such store, experiment or run id, or no run that can be compared.
    """
    advice = f"Give another tracking.uri, or run directories, runs=[DIR,DIR]; or begin with: {_BEGIN}"
    needs_store = config.runs is None or any(_RUN_ID.fullmatch(run) for run in config.runs)
    client = mlflow_client.existing(config.tracking.uri, advice) if needs_store else None
    if config.runs is not None:
        name, asked = "selected runs", f"runs=[{','.join(config.runs)}]"
        found = list(_selected(config.runs, client, config.tracking.uri))
    else:
        experiment = _experiment(client, config.experiment, config.tracking.uri)
        name, asked = str(experiment.name), f"experiment={config.experiment}"
        found = [
            stored_runs.from_mlflow(client, run)
            for run in _trainings(client, experiment.experiment_id, config.filter)
        ]
        if not found:
            those = f" that {config.filter!r} finds" if config.filter else ""
            raise UserError(
                f"experiment={name} in {config.tracking.uri} has no training{those}; begin with: {_BEGIN}"
            )
    more = [f"filter={config.filter}"] if config.filter else []
    comparison = sort(name, shlex.join(["python", "-m", "memlab.compare", asked, *more]), found)
    console = terminal.console()
    if not comparison.tables:
        said = "; ".join(f"{run.name} {run.reason}" for run in comparison.left_out)
        raise UserError(f"{asked}: of {len(comparison.left_out)} runs none can be compared: {said}")
    directory = _write(comparison, config, name)
    console.print()
    tables.to_terminal(comparison, console)
    charts = None
    if config.runs is None:
        first = comparison.tables[0]
        uri, order = absolute_uri(config.tracking.uri), f"summary/test_{first.metric}"
        charts = mlflow_store.page_of(
            uri, experiment.experiment_id, order, ascending=not first.higher_is_better
        )
        if config.track:
            _track(client, experiment.experiment_id, comparison, directory, charts)
    console.print(f"tables  {directory}/table.md, groups.csv, runs.csv", soft_wrap=True)
    console.print(f"page    {(directory / 'index.html').as_uri()}", soft_wrap=True)
    if charts is not None:
        start = f" (after: mlflow ui --backend-store-uri {uri})" if uri.startswith(SQLITE) else ""
        console.print(f"mlflow  {charts}{start}", soft_wrap=True)
    if config.open and not webbrowser.open((directory / "index.html").as_uri()):
        print("memlab: warning: no browser could be started; open the page by hand", file=sys.stderr)
    return comparison


def _write(comparison: Comparison, config: CompareConfig, name: str) -> Path:
    stem = re.sub(
        r"[^\w.-]+", "_", name if config.runs is None else f"selected_{datetime.now():%Y-%m-%d_%H-%M-%S}"
    )
    stem = stem.lstrip(".") or "_"  # `..` would lead elsewhere
    directory = Path(config.out or f"runs/compare/{stem}").expanduser().absolute()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in (
            ("table.md", tables.to_markdown(comparison)),
            ("groups.csv", tables.groups_csv(comparison)),
            ("runs.csv", tables.runs_csv(comparison)),
        ):
            (directory / file).write_text(text, encoding="utf-8")
        page.write(
            comparison, directory, f"Made on {datetime.now():%Y-%m-%d %H:%M} with memlab {__version__}."
        )
    except OSError as error:
        raise UserError(f"out={directory} cannot be written: {error.strerror}") from None
    return directory


def _experiment(client: Any, name: str | None, uri: str) -> Any:
    there = {str(e.name): e for e in client.search_experiments()}
    if name in there:
        return there[name]
    counts = {n: len(_trainings(client, e.experiment_id, None)) for n, e in there.items()}
    known = ", ".join(
        f"{n} ({count} {'runs' if count != 1 else 'run'})" for n, count in sorted(counts.items()) if count
    )
    choices = f"There are: {known}" if known else f"The store is empty; begin with: {_BEGIN}"
    if name is None:
        raise UserError(
            f"experiment or runs is missing: give experiment=NAME or runs=[DIR,DIR]. {uri}: {choices}"
        )
    raise UserError(f"{uri} has no experiment {name!r}.{suggestion(name, there)} {choices}")


def _trainings(client: Any, experiment_id: str, wanted: str | None) -> list[Any]:
    """The experiment's runs, without those that only group others.

    Raises:
        UserError: MLflow does not understand the filter.
    """
    from mlflow.exceptions import MlflowException

    found: list[Any] = []
    token = None
    while True:
        try:
            some = client.search_runs([experiment_id], wanted or "", max_results=1000, page_token=token)
        except MlflowException as error:
            raise UserError(f"filter={wanted}: {str(error).splitlines()[0]}") from None
        found += some
        if not (token := some.token):
            return [run for run in found if multirun.KIND not in run.data.tags]


def _selected(runs: list[str], client: Any, uri: str) -> Iterator[StoredRun | LeftOut]:
    """The runs that `runs` names, each once.

    Raises:
        UserError: the store has no run of such an id.
    """
    seen: set[str] = set()
    for asked in runs:
        place = Path(asked).expanduser().absolute()
        there = exists(f"runs={asked}", place)
        if not there and _RUN_ID.fullmatch(asked):
            found = [_by_id(client, asked, uri)]
        elif not there or not place.is_dir():
            found = [LeftOut(asked, "is neither a directory nor an MLflow run id")]
        else:
            found = [stored_runs.from_directory(directory) for directory in stored_runs.below(place)]
            found = found or [LeftOut(asked, "holds no run (no config.yaml)")]
        for run in found:
            if run.name not in seen:
                seen.add(run.name)
                yield run


def _by_id(client: Any, run_id: str, uri: str) -> StoredRun | LeftOut:
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException:
        raise UserError(f"runs: {uri} has no run {run_id}") from None
    if run.info.lifecycle_stage != "active":
        return LeftOut(run_id, "has been deleted")
    return stored_runs.from_mlflow(client, run)


def _track(client: Any, experiment_id: str, comparison: Comparison, directory: Path, charts: str) -> None:
    """Store the report in MLflow: in the multirun that all runs are jobs of, else in a run `comparison`."""
    from mlflow.exceptions import MlflowException

    try:
        parents = {run.parent for run in comparison.runs}
        target = parents.pop() if len(parents) == 1 else None
        if target is None:
            old = client.search_runs([experiment_id], f"tags.`{multirun.KIND}` = 'comparison'", max_results=1)
            target = old[0].info.run_id if old else _new(client, experiment_id)
        for file in sorted(directory.rglob("*")):
            if file.is_file() and not file.is_symlink():
                under = file.parent.relative_to(directory).as_posix()
                client.log_artifact(target, str(file), "comparison" + ("" if under == "." else f"/{under}"))
        first = "1_pareto.png" if len(comparison.tables) > 1 else "pareto.png"
        figure = f"\n\n![figure](get-artifact?path=comparison%2Ffigures%2F{first}&run_uuid={target})"
        note = tables.to_markdown(comparison)
        # the verdicts come first, since the UI folds long descriptions
        said = "\n\n".join(f"**{markdown(t.title)}**: {markdown(t.verdict)}" for t in comparison.tables)
        note = f"{said}\n\n{note}" if len(said) + len(note) < 4500 else said[:4500]
        client.set_tag(
            target,
            "mlflow.note.content",
            f"{note}\n\n[Charts of all runs](#{charts.partition('#')[2]}){figure}",
        )
    except (MlflowException, OSError) as error:
        print(f"memlab: warning: the page is not in MLflow: {str(error).splitlines()[0]}", file=sys.stderr)


def _new(client: Any, experiment_id: str) -> str:
    tags = {multirun.KIND: "comparison", "mlflow.source.name": "memlab.compare"}
    run_id = str(client.create_run(experiment_id, tags=tags, run_name="comparison").info.run_id)
    client.set_terminated(run_id)
    return run_id
