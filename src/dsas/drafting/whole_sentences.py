"""Whole sentences: answers that a limit of tokens cut off, and answers made about equally long.

Limitations: a sentence ends where one of . ! ? (or their full-width forms) stands before a space or the end, so
"e.g. this" counts as two; words are separated by spaces.
"""

import re
from collections.abc import Sequence

_END = re.compile(r"[.!?…]['\")\]]*(?=\s|$)|[。！？]")


def ended(answer: str) -> str:
    """Return an answer up to its last whole sentence; one in which no sentence ends stays as it is."""
    ends = _ends(answer)
    return answer[: ends[-1]].strip() if ends else answer.strip()


def evened(answers: Sequence[str]) -> list[str]:
    """Return answers cut at ends of sentences to about the length of the shortest, at least one sentence each."""
    goal = min(len(answer.split()) for answer in answers)
    return [_cut(answer, goal) for answer in answers]


def _cut(answer: str, words: int) -> str:
    beginnings = [answer[:end] for end in _ends(answer)]
    return min([*beginnings, answer], key=lambda beginning: abs(len(beginning.split()) - words))


def _ends(text: str) -> list[int]:
    return [found.end() for found in _END.finditer(text)]
