"""The jobs of one `--multirun` under one parent run in MLflow.

Each job is a process of its own, and knows from its environment that it belongs to the others (see
`memlab.config.jobs.announce`). The first job makes the parent, the others find it; as each job ends, the
parent gets the state of them all. A sweep over several tasks has one parent in each task's experiment. Jobs
of a multirun come one after another; those that run at the same time take turns by the store's lock.
"""

from __future__ import annotations

import shlex
from contextlib import AbstractContextManager
from typing import Any

from memlab.config import jobs

KIND = "memlab.kind"  # tag of runs that are no trainings: `multirun`, `comparison`
_ID = "memlab.multirun"
PARENT = "mlflow.parentRunId"  # MLflow's own, by which its UI nests runs


def parent(client: Any, experiment_id: str, lock: AbstractContextManager[Any]) -> str | None:
    """The run id of the parent of this process's multirun, made if this job is the first;
    None = it is not a job of one.
    """
    if (multirun := jobs.multirun()) is None:
        return None
    identity, words = multirun
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
