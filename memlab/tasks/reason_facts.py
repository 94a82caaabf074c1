"""Where is the object? Two facts anywhere, both needed (arXiv 2304.11062, section 4, "reasoning").

    .. John took the football . .. | .. Mary is in the garden and John is in the office . .. |
    .. where is the football ?    answer: office

One fact states where P persons are, all at different places; the other states which person has an object.
Either may come first, and they begin at any two tokens before the question's segment where they do not
overlap, all pairs of places with equal probability. The best possible accuracy, exactly, for a model that
knows

    both facts                       1
    only where the persons are       1 / P      any of them may have the object
    only the object's owner          1 / 6      that person may be at any of the six places
    neither                          1 / 6

(The published task is number 4 of bAbI's 20 tasks, in which one of the two facts suffices, and the same 1,000
samples serve for training and validation.)

The same facts with the object at each of the persons are P consecutive samples, as in `associative_retrieval`
and for the same reason: the probability of each sample is unchanged, but the contributions of guessing among
the P places to the gradient cancel within a batch.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.draws import Ints, RandomNumbers, choose, choose_distinct
from memlab.tasks.facts import (
    A_PERSON,
    A_TAKE,
    AN_OBJECT,
    OBJECTS,
    PERSONS,
    PLACES,
    TAKES,
    FactTask,
    pairs_of_gaps,
    phrase,
    stack_gaps,
)


class ReasonFacts(FactTask):
    """Two facts, both needed.

    Args:
        persons: P, how many persons' places are stated, 2 to 4. `sizes` are `FactTask`'s arguments.
    """

    question_length = 5
    stage_threshold = 0.9  # the stages only prepare: what is missing in one is learned in the next

    def __init__(self, *, persons: Positive, **sizes: Any) -> None:
        if not 2 <= persons <= len(PERSONS):
            raise ConfigError(
                f"task.persons={persons}: 2 to {len(PERSONS)}; with one, a single fact would be the answer"
            )
        self.persons = persons
        super().__init__(**sizes)

    @property
    def fact_lengths(self) -> tuple[int, ...]:
        return 6 * self.persons, 5

    @property
    def _free(self) -> int:
        return self.room - sum(self.fact_lengths)

    @property
    def arrangements(self) -> int:
        return 2 * pairs_of_gaps(self._free)

    @property
    def story_numbers(self) -> int:
        return 4 + len(PERSONS) + len(PLACES)

    @property
    def stories(self) -> int:
        return (
            math.perm(len(PERSONS), self.persons)
            * math.perm(len(PLACES), self.persons)
            * self.persons
            * len(TAKES)
            * len(OBJECTS)
        )

    @property
    def members(self) -> int:
        return self.persons

    def options(self) -> dict[str, Any]:
        return super().options() | {"persons": self.persons}

    def story(self, random_BW: RandomNumbers, member_B: Ints) -> tuple[list[tuple[Ints, Ints]], Ints, Ints]:
        count, rows_B = len(random_BW), np.arange(len(random_BW))
        order, gaps, take, thing = random_BW[:, :4].T
        person_BP = A_PERSON + choose_distinct(random_BW[:, 4 : 4 + len(PERSONS)], self.persons)
        place_BP = choose_distinct(random_BW[:, 4 + len(PERSONS) :], self.persons)
        take_B, thing_B = A_TAKE + choose(take, len(TAKES)), AN_OBJECT + choose(thing, len(OBJECTS))
        clauses = (
            phrase(count, person_BP[:, p], "is", "in", "the", place_BP[:, p], "and")
            for p in range(self.persons)
        )
        where_Bn = np.concatenate(list(clauses), axis=1)
        where_Bn[:, -1:] = phrase(count, ".")
        who_Bn = phrase(count, person_BP[rows_B, member_B], take_B, "the", thing_B, ".")
        first_B, second_B = stack_gaps(gaps, self._free)
        swapped_B = choose(order, 2) == 1
        where_begins_B = np.where(swapped_B, second_B + who_Bn.shape[1], first_B)
        who_begins_B = np.where(swapped_B, first_B, second_B + where_Bn.shape[1])
        question_Bq = phrase(count, "where", "is", "the", thing_B, "?")
        return [(where_begins_B, where_Bn), (who_begins_B, who_Bn)], question_Bq, place_BP[rows_B, member_B]
