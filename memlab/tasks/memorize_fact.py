"""Where is somebody? One fact at the very start (arXiv 2304.11062, section 4, "memorize").

    Mary went to the garden . filler .. | .. | filler .. where is Mary ?      answer: garden

Only the fact has the name of a place, so it is easy to tell from filler; it has to be remembered.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memlab.tasks.draws import Ints, RandomNumbers, choose
from memlab.tasks.facts import A_MOVE, A_PERSON, MOVES, PERSONS, PLACES, FactTask, phrase


class MemorizeFact(FactTask):
    """One fact at the very start. Arguments as in `FactTask`."""

    fact_lengths = (6,)
    question_length = 4
    story_numbers = 4
    stories = len(PERSONS) * len(MOVES) * len(PLACES)
    arrangements = 1

    def begin(self, random_B: NDArray[np.uint64]) -> Ints:
        """The token [B] at which the fact begins."""
        return np.zeros(len(random_B), dtype=np.int64)

    def story(self, random_BW: RandomNumbers, member_B: Ints) -> tuple[list[tuple[Ints, Ints]], Ints, Ints]:
        count, (begin, person, move, place) = len(random_BW), random_BW.T
        person_B, move_B, place_B = (
            A_PERSON + choose(person, len(PERSONS)),
            A_MOVE + choose(move, len(MOVES)),
            choose(place, len(PLACES)),
        )
        fact_Bn = phrase(count, person_B, move_B, "to", "the", place_B, ".")
        return [(self.begin(begin), fact_Bn)], phrase(count, "where", "is", person_B, "?"), place_B
