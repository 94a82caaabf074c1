"""`python -m memlab.export run=DIR to=DIR2`: write a run's model as a directory of safetensors.

A model with full attention and blocks that transformers has is written as theirs; any other with a
`config.json` of memlab's, which `memlab.load` opens. Both can be a `backbone.path`.
"""

from __future__ import annotations

from memlab.config import cli
from memlab.evaluation.settings import ExportConfig, check_export


def job(config: ExportConfig) -> int:
    from memlab.evaluation.exporting import export

    print(export(config))
    return 0


def main() -> None:
    cli.run("export", check_export, job, groups=False)


if __name__ == "__main__":
    main()
