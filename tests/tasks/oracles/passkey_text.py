"""The digits after the words "the pass key is", by the words of the tokens."""

from memlab.tasks.base import SyntheticTask


def solve(task: SyntheticTask, read: list[int]) -> list[int]:
    words = [task.word(token).lower() for token in read if token >= 0]
    at = next(i for i in range(len(words)) if words[i : i + 4] == ["the", "pass", "key", "is"])
    return read[at + 4 : at + 4 + task.answer_tokens]
