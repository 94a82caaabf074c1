"""`python -m memlab.generate run=DIR prompt="Once upon a time"`: let a run on text continue a prompt.

A pretrained model, which no run has trained, is described as for `memlab.train`, in the place of `run=DIR`:
`backbone=pretrained backbone.path=DIR`. In Python: `memlab.load(DIR).generate(..)`.
"""

from __future__ import annotations

import sys

from hydra.core.override_parser.types import Quote, QuotedString

from memlab.config import cli
from memlab.config import untrained as described_in
from memlab.evaluation.settings import GenerateConfig, check_generate
from memlab.terminal.plain import printable


def job(config: GenerateConfig) -> int:
    import torch

    from memlab.api import load, untrained
    from memlab.evaluation.trained import choose_device

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = choose_device(config.accelerator)
    if config.untrained is not None:
        run = untrained(config.untrained, device)
    else:
        assert config.run is not None  # or `untrained`
        run = load(config.run, device=device, uri=config.tracking.uri, trust=config.trust)
    pieces = run.write(
        config.prompt, config.tokens, temperature=config.temperature, top_k=config.top_k, seed=config.seed
    )
    # a model may have learned to write what a terminal obeys
    shown = printable if sys.stdout.isatty() else str
    print(shown(config.prompt), end="", flush=True)
    try:
        for piece in pieces:
            print(shown(piece), end="", flush=True)
    except KeyboardInterrupt:
        print("\nmemlab.generate: interrupted", file=sys.stderr)
        return 130
    print()
    return 0


def quoted(argument: str) -> str:
    """Quote the prompt for Hydra, which would otherwise read a comma as a sweep and digits as a number.

    A prompt that is still in quotes after the shell is left to Hydra, as for the jobs of `--multirun`.
    """
    key, equals, text = argument.partition("=")
    if key != "prompt" or not equals or (len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"):
        return argument
    return f"prompt={QuotedString(text, Quote.double).with_quotes()}"


def main() -> None:
    words = [quoted(argument) for argument in sys.argv[1:]]
    own, described = cli.or_exit("generate", lambda: described_in.separate("generate", words))
    sys.argv[1:] = own
    described = described.writing()
    cli.run("generate", lambda composed: check_generate(composed, described.config()), job, groups=False)


if __name__ == "__main__":
    main()
