"""Labelled: sentences written for this, half neutral and half an insult, with the insulting span marked by hand.

They play no part in fitting: they test whether a regulator distinguishes tokens of one text.
Insults are mild on purpose, and none is aimed at a group. In half of the texts the insult comes first.
"""

import re
from pathlib import Path
from typing import NamedTuple

_MARK = re.compile(r"(.*)\[\[(.+)\]\](.*)")


class LabelledText(NamedTuple):
    """A text and the span of its letters, from start to before end, that is an insult."""

    text: str
    start: int
    end: int

    def labels(self, pieces: list[str]) -> list[bool]:
        """Return for every token, given by its piece of the text, whether it has a letter in the insult."""
        labels, place = [], 0
        for piece in pieces:
            letters = [place + i for i, letter in enumerate(piece) if not letter.isspace()]
            labels.append(any(self.start <= letter < self.end for letter in letters))
            place += len(piece)
        return labels


def labelled_texts() -> list[LabelledText]:
    """Return the 48 texts."""
    lines = Path(__file__).with_name("labelled.txt").read_text(encoding="utf-8").splitlines()
    texts = []
    for line in lines:
        marked = _MARK.fullmatch(line)
        assert marked is not None, line
        before, insult, after = marked.groups()
        texts.append(LabelledText(before + insult + after, len(before), len(before) + len(insult)))
    return texts
