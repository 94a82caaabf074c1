"""The jobs of one `--multirun` under one parent run in MLflow.

Each job is a process of its own, so the command that starts them only says in their environment that they
belong together. The first job makes the parent, the others find it; as each job ends, the parent gets the
state of them all. A sweep over several tasks has one parent in each task's experiment. Jobs of a multirun
come one after another; those that are started beside each other take turns by the store's lock.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

_VARIABLE = "MEMLAB_MULTIRUN"
KIND = "memlab.kind"  # tag of runs that are no trainings: `multirun`, `comparison`
_ID = "memlab.multirun"
PARENT = "mlflow.parentRunId"  # MLflow's own, by which its UI nests runs


def announce(command: str, words: Sequence[str]) -> None:
    """Tell the processes that are started from now on that they are jobs of this command."""
    identity = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    os.environ[_VARIABLE] = shlex.join([identity, "python", "-m", f"memlab.{command}", *words])


def is_job(environment: Mapping[str, str] = os.environ) -> bool:
    return _VARIABLE in environment


def parent(client: Any, experiment_id: str, lock: AbstractContextManager[Any]) -> str | None:
    """The run id of the parent of this process's multirun, made if this job is the first;
    None = it is no job of one.
    """
    if not is_job():
        return None
    identity, *words = shlex.split(os.environ[_VARIABLE])
    with lock:
        found = client.search_runs([experiment_id], f"tags.`{_ID}` = '{identity}'", max_results=1)
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
            return str(run_id)
        swept = " ".join(
            w for w in words[3:] if "=" in w and not w.startswith(("run_dir=", "tracking.", "resume="))
        )
        tags = {
            _ID: identity,
            KIND: "multirun",
            "memlab.command": shlex.join(words),
            "mlflow.source.name": words[2],
            "mlflow.note.content": (
                f"```\n{shlex.join(words)}\n```\n\n`memlab.compare` puts its page and table here."
            ),
        }
        return str(
            client.create_run(experiment_id, tags=tags, run_name=f"multirun {swept}"[:200]).info.run_id
        )


def child_ended(client: Any, experiment_id: str, parent_id: str) -> None:
    """End the parent as its children have ended so far: FAILED if one of them did not finish."""
    children = client.search_runs([experiment_id], f"tags.`{PARENT}` = '{parent_id}'")
    done = all(child.info.status == "FINISHED" for child in children)
    client.set_terminated(parent_id, "FINISHED" if done else "FAILED")
