"""WikiText (Merity et al. 2016, arXiv 1609.07843): articles of Wikipedia, with a whole split in one file.

A document is an article: from one first-level heading, ` = Title = ` alone on its line between blank lines,
to the next. The hub's copy has a record for each line, with empty records for blank lines; blank lines are
restored, so that the bytes are those of the published files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from memlab.tasks.text import TextTask
from memlab.text.corpus import Corpus

HEADING = re.compile(rb" = [^=]+ = \r?\n?")
BLANK = b" \n"


class WikiText(TextTask):
    """Articles of WikiText-2 or WikiText-103. The arguments are `TextTask`'s."""

    def _find(self) -> Corpus:
        return replace(super()._find(), divide=articles)


def articles(texts: Iterable[bytes]) -> Iterator[bytes]:
    """The articles in texts that are whole files or single lines."""
    lines: list[bytes] = []
    for line in (line for text in texts for line in text.splitlines(keepends=True) or [BLANK]):
        lines.append(line)
        if not line.strip() and len(lines) > 2 and HEADING.fullmatch(lines[-2]) and not lines[-3].strip():
            article, lines = lines[:-2], lines[-2:]
            if any(other.strip() for other in article):
                yield b"".join(article)
            else:
                # the file's first heading: blank lines before it belong to its article
                lines = article + lines
    if lines:
        yield b"".join(lines)
