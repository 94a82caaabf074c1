"""The examples of CONTRIBUTING.md as files: what a reader copies from there is what the tests run."""

from __future__ import annotations

import atexit
import functools
import re
import shutil
import tempfile
from pathlib import Path

CONTRIBUTING = Path(__file__).resolve().parent.parent / "CONTRIBUTING.md"
_EXAMPLE = re.compile(r"<!-- example: (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)


@functools.cache
def examples() -> Path:
    """A folder with the files of the examples, a memory and a task; it goes with the tests."""
    folder = Path(tempfile.mkdtemp(prefix="memlab-example-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    found = _EXAMPLE.findall(CONTRIBUTING.read_text(encoding="utf-8"))
    assert found, "CONTRIBUTING.md has no examples"
    for name, text in found:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
