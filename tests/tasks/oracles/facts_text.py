"""Follows the sentences: who is where, who has what, and what is asked."""

from memlab.tasks.base import SyntheticTask

HAVING = {"found", "has", "holds", "took"}
MOVING = {"journeyed", "moved", "travelled", "went"}


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    words = [task.word(token).lower() for token in read]
    place, owner = dict[str, str](), dict[str, str]()
    for at, word in enumerate(words[:-8]):
        if word in MOVING or words[at : at + 3] == ["is", "in", "the"]:  # NAME went to the PLACE
            place[words[at - 1]] = words[at + 3]
        elif word in HAVING:  # NAME took the THING
            owner[words[at - 1 + 3]] = words[at - 1]
    asked = words[-4]  # .. is in the
    answer = place[owner.get(asked, asked)]
    return [next(token for token, word in zip(read, words, strict=True) if word == answer)]
