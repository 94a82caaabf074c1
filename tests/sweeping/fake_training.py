"""Stands in for `memlab.train` where a sweep's leases, retries and endings are tested: same words, files,
lock and signals, no torch.

Each validation takes `pause` seconds and is a checkpoint: a run that is killed goes on behind the last one.
The environment says what happens: `FAKE_STEPS`, `FAKE_PAUSE`, `FAKE_FAIL` (a word of the command line with
which it fails).
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path

from filelock import FileLock, Timeout

from memlab.config import lifetime


def main() -> int:
    lifetime.end_with_starter()
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    directory = Path(words["run_dir"].strip("'"))
    directory.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(directory / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        print("memlab.train: error: the run is in use: another process trains it at this moment")
        return 2
    with (directory / "starts").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if os.environ.get("FAKE_FAIL") in sys.argv:
        print(f"memlab.train: error: {os.environ['FAKE_FAIL']} is bad")
        return 2
    ended: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: ended.append(number))
    metrics, steps = directory / "metrics.jsonl", int(os.environ.get("FAKE_STEPS", "5"))
    done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
    lr = float(words["optim.lr"])
    good = 1 - abs(math.log10(lr) + 2.5) / 3  # best near 3e-3
    for step in range(done + 1, steps + 1):
        time.sleep(float(os.environ.get("FAKE_PAUSE", "0.01")))
        with metrics.open("a") as file:
            file.write(json.dumps({"step": step, "val/score": good * step / steps}) + "\n")
        if ended:
            return 143
    tested = {"test/accuracy": good} if words["trainer.test"] == "true" else {}
    result = {
        "status": "finished",
        "seed": int(words["seed"]),
        "steps": steps,
        "metrics": {"val/score": good + 1e-3 * int(words["seed"]), **tested},
        "memory": {"state_bytes": int(float(words.get("model.memory_tokens", "1")))},
        "timing": {},
    }
    partial = directory / "result.partial"
    partial.write_text(json.dumps(result))
    partial.replace(directory / "result.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
