"""Fluency: do continuations vary, or does strong steering make them repeat themselves?

    distinct_n = different n-grams of all texts / n-grams of all texts
    repetition = mean over texts of 1 - different 4-grams of the text / its 4-grams

Words are what lies between spaces, in lower case. distinct_n falls as more text is given, so compare equal amounts.

Left out: texts shorter than n words (they have no n-grams and count neither way).

Source: distinct-n, Li et al. 2016 (1510.03055); seq-rep-4, Welleck et al. 2020 (1908.04319).
"""

from collections.abc import Sequence
from typing import NamedTuple

from dsas.errors import TextsError

Gram = tuple[str, ...]


class FluencyResult(NamedTuple):
    """All in [0, 1]: much variety is distinct near 1 and repetition near 0. With no n-grams at all, both are 0."""

    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition: float


def fluency(texts: Sequence[str]) -> FluencyResult:
    """Measure the variety within and between `texts`. Raises TextsError when there are none."""
    if isinstance(texts, str) or not texts:
        raise TextsError("expected a list of at least one text")
    words = [text.lower().split() for text in texts]
    distinct = [_distinct([gram for text in words for gram in _grams(text, n)]) for n in (1, 2, 3)]
    repeated = [1 - _distinct(grams) for text in words if (grams := _grams(text, 4))]
    return FluencyResult(*distinct, repetition=sum(repeated) / max(1, len(repeated)))


def _grams(words: list[str], n: int) -> list[Gram]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(grams: list[Gram]) -> float:
    return len(set(grams)) / max(1, len(grams))
