"""`python -m memlab.train model=rmt task=reverse`: train, validate, test the best checkpoint once.

`--help` lists every key.
"""

from __future__ import annotations

import sys
import warnings

from memlab.config import cli, launch, lifetime, starter
from memlab.config.checks import check
from memlab.config.sections import Config
from memlab.config.unexpected import kept_in
from memlab.tracking import resume


def job(config: Config) -> int:
    arguments, t = sys.argv[1:], config.trainer
    place = launch.find(t.strategy, t.devices, t.num_nodes, t.accelerator)
    origin = None
    if place.rank:
        warnings.simplefilter("ignore")  # the first process reports them
    else:
        origin = resume.find(config)
        if origin.result is not None and not place.outside:
            place = launch.Place()  # there is nothing to do for the other processes
    with (
        kept_in(origin.directory if origin else None, config.run_dir),
        launch.others(place, arguments, t.threads) as others,  # they import while this process does
    ):
        # torch and lightning take seconds to import, which --help and mistakes avoid
        from memlab.training.processes import Processes
        from memlab.training.run import train

        train(config, origin, arguments, lambda gpu: Processes.join(place, others, gpu))
        Processes.leave()
    return 0


def main() -> None:
    lifetime.end_with_starter()
    cli.run("train", check, job, imports=starter.TRAINING)


if __name__ == "__main__":
    main()
