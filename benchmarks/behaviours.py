"""Behaviours labelled by people or by a rule: texts that show one, and texts of the same kind that do not.

| behaviour | source | control | labelled by |
|---|---|---|---|
| insults | insulting comments | other comments | people (Kaggle 2012, see `comments.py`) |
| sarcasm | satirical headlines | other headlines | people (28,614 headlines of `evals`, MIT) |
| numbers | Wikipedia sentences with a digit | those without | a rule |
| first-person | web sentences with I, me, my, mine, myself | those without | a rule |
| he-or-she | Wikipedia sentences that begin with He or She | those that do not | a rule |

The first three were used to choose the default; he-or-she was not, and was read only after the choice.
"""

import json
import re
from collections.abc import Callable
from typing import NamedTuple

from comments import labelled_comments

from dsas.demo.data import openwebtext_sentences, split, wikipedia_sentences
from dsas.files.pinned_packages import fetch

FIT = 130
_FIRST = re.compile(r"\b(I|me|my|mine|myself)\b")


class Texts(NamedTuple):
    """Texts that show a behaviour, texts of the same kind that do not, and general text: to fit on, or to read."""

    source: list[str]
    control: list[str]
    general: dict[str, list[str]]


def insults() -> tuple[list[str], list[str]]:
    """Return insulting and other comments."""
    comments = labelled_comments()
    return comments.toxic, comments.clean


def sarcasm() -> tuple[list[str], list[str]]:
    """Return satirical and other headlines."""
    file = fetch("evals") / "evals" / "registry" / "data" / "sarcasm" / "samples.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line.strip()]
    told = [(row["input"][-1]["content"], row["ideal"].strip()) for row in rows]
    return [text for text, label in told if label == "1"], [text for text, label in told if label == "0"]


def numbers() -> tuple[list[str], list[str]]:
    """Return sentences of Wikipedia with and without digits."""
    return _by(wikipedia_sentences(), lambda text: any(letter.isdigit() for letter in text))


def first_person() -> tuple[list[str], list[str]]:
    """Return sentences of the web whose writer speaks of himself or herself, and others."""
    return _by(openwebtext_sentences(), lambda text: _FIRST.search(text) is not None)


def he_or_she() -> tuple[list[str], list[str]]:
    """Return sentences of Wikipedia that begin with a pronoun for a person, and others."""
    return _by(wikipedia_sentences(), lambda text: text.split()[0] in ("He", "She"))


BEHAVIOURS: dict[str, Callable[[], tuple[list[str], list[str]]]] = {
    "insults": insults,
    "sarcasm": sarcasm,
    "numbers": numbers,
    "first-person": first_person,
    "he-or-she": he_or_she,
}


def texts_of(behaviour: str, read: int) -> tuple[Texts, Texts]:
    """Return texts to fit on, and `read` others of each kind, or as many as there are, to read; none is in both."""
    source, control = BEHAVIOURS[behaviour]()
    size = min(FIT, len(set(source)) // 2)
    fit, others = {}, {}
    taken: set[str] = set(source)
    pools = {"source": source, "control": control, "web": openwebtext_sentences(), "Wikipedia": wikipedia_sentences()}
    for name, pool in pools.items():
        free = list(dict.fromkeys(text for text in pool if name == "source" or text not in taken))
        fit[name], others[name] = split(free, (size, min(read, len(free) - size)))
        taken |= {*fit[name], *others[name]}
    parts = [
        Texts(some["source"], some["control"], {kind: some[kind] for kind in ("Wikipedia", "web")})
        for some in (fit, others)
    ]
    return parts[0], parts[1]


def _by(texts: list[str], shows: Callable[[str], bool]) -> tuple[list[str], list[str]]:
    return [text for text in texts if shows(text)], [text for text in texts if not shows(text)]
