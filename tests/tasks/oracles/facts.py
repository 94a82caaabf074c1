"""A parser of the fact tasks that knows nothing but how their sentences read."""

import re

from memlab.tasks.facts import FactTask

MOVED = re.compile(r"(\w+) (?:journeyed|moved|travelled|went) to the (\w+) \.")
WHERE = re.compile(r"\w+ is in the \w+(?: and \w+ is in the \w+)+ \.")
HAS = re.compile(r"(\w+) (?:found|has|holds|took) the (\w+) \.")
ASKED = re.compile(r"where is (?:the )?(\w+) \?$")


def answer(words: list[str]) -> str:
    """The place that is asked for."""
    text = " ".join(words)
    place = dict(MOVED.findall(text))
    for fact in WHERE.findall(text):
        place |= dict(re.findall(r"(\w+) is in the (\w+)", fact))
    holder = {thing: person for person, thing in HAS.findall(text)}
    asked = ASKED.findall(text)[0]
    return place[holder.get(asked, asked)]


def solve(task: FactTask, read: list[int]) -> list[int]:
    place = answer([task.word(token) for token in read])
    return [next(token for token in range(task.vocab_size) if task.word(token) == place)]
