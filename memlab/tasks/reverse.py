"""Reverse (RMT paper, arXiv 2207.06881, appendix A.1): read N symbols, then write them backwards.

    X, start, reversed X        tokens 2N, answer N

The symbol that is read first comes last in the answer.
"""

from __future__ import annotations

from memlab.tasks.copy import Copy
from memlab.tasks.draws import Ints


class Reverse(Copy):
    """Reverse. Arguments as in `Copy`; only the answer differs."""

    def tokens_for(self, length: int) -> int:
        return 2 * length

    @property
    def answer_tokens(self) -> int:
        return self.length

    def answer(self, source: Ints) -> Ints:
        return source[:, ::-1]
