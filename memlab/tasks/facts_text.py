"""The three fact tasks in words (arXiv 2304.11062, section 4): where is somebody, or something?

    memorize    Mary went to the garden. .. | .. | .. Where is Mary? Mary is in the          answer: garden
    detect      .. Mary went to the garden. .. | .. | .. Where is Mary? Mary is in the       answer: garden
    reason      .. John took the football. .. | .. Mary is in the garden and John is in the office. .. |
                .. Where is the football? The football is in the                             answer: office

One fact at the very start; one fact anywhere; two facts anywhere, in any order, both needed. All answers
are one of six places with equal probability. In `reason`, a model that knows only one of the two facts is
right in 1 / 2 or 1 / 6 of the samples, and the same facts with the object at each of the two persons are
two samples in a row (see `reason_facts.py`).

The stories are those of `memorize_fact`, `detect_fact` and `reason_facts`, in which one token is one word.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

from memlab.tasks.facts import MOVES, OBJECTS, PERSONS, PLACES, TAKES
from memlab.tasks.language import Answers
from memlab.tasks.prose import ProseTask, Story, chosen, fraction

_CAN_BE = 2  # persons of whom `reason` says where they are


class FactsText(ProseTask):
    """Facts in words.

    Args:
        story: which of the three tasks. `prose` are `ProseTask`'s arguments.
    """

    def __init__(self, *, story: Literal["memorize", "detect", "reason"], **prose: Any) -> None:
        self.kind = story
        if story == "reason":
            self.stage_threshold = (
                0.9  # the stages only prepare: what is missing in one is learned in the next
            )
        super().__init__(**prose)

    @property
    def members(self) -> int:
        return _CAN_BE if self.kind == "reason" else 1

    def texts(self) -> Iterable[str]:
        names = (*PERSONS, *MOVES, *PLACES, *OBJECTS, *TAKES)
        return " ".join(names), moved("", "", ""), "took the and is in the.", question("")

    def forbidden(self) -> Iterable[str]:
        return (*PERSONS, *PLACES, *OBJECTS)

    @property
    def stories(self) -> int:
        if self.kind != "reason":
            return len(PERSONS) * len(MOVES) * len(PLACES)
        where = math.perm(len(PERSONS), _CAN_BE) * math.perm(len(PLACES), _CAN_BE)
        return where * _CAN_BE * len(TAKES) * len(OBJECTS)

    @property
    def story_numbers(self) -> int:
        return 4 + len(PERSONS) + len(PLACES)

    def options(self) -> dict[str, Any]:
        return super().options() | {"story": self.kind}

    def make_answers(self) -> Answers:
        return Answers(self.language, [(question(PERSONS[0]), place) for place in PLACES], numbers=False)

    def story(self, random_W: Sequence[int], member: int) -> Story:
        one, other, verb, thing = random_W[:4]
        persons = chosen(PERSONS, random_W[4 : 4 + len(PERSONS)], _CAN_BE)
        places = chosen(PLACES, random_W[4 + len(PERSONS) :], _CAN_BE)
        if self.kind != "reason":
            fact = moved(persons[0], MOVES[verb % len(MOVES)], places[0])
            where = 0.0 if self.kind == "memorize" else fraction(one)
            return Story(
                ((fact, where),), question(persons[0]), places[0], None if self.kind == "memorize" else 0
            )
        taken = OBJECTS[thing % len(OBJECTS)]
        are = " and ".join(f"{who} is in the {place}" for who, place in zip(persons, places, strict=True))
        took = f"{persons[member]} {TAKES[verb % len(TAKES)]} the {taken}."
        facts = ((f"{are}.", fraction(one)), (took, fraction(other)))
        return Story(facts, question(f"the {taken}"), places[member], asked=None)


def moved(person: str, move: str, place: str) -> str:
    return f"{person} {move} to the {place}."


def question(what: str) -> str:
    return f"Where is {what}? {what[:1].upper()}{what[1:]} is in the"
