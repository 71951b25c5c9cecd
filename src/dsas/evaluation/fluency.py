"""Fluency: do continuations vary, or does strong steering make them repeat themselves?

    distinct_n = different n-grams of all texts / n-grams of all texts
    repetition = mean over texts of 1 - different 4-grams of the text / its 4-grams

Words are separated by spaces and taken in lower case. distinct_n falls as more text is given, so compare equal amounts.

Limitations: texts shorter than n words have no n-grams and are not counted.

Source: distinct-n, Li et al. 2016 (1510.03055); seq-rep-4, Welleck et al. 2020 (1908.04319); the jackknife, Efron and
Stein 1981.
"""

from collections import Counter
from collections.abc import Sequence
from statistics import pstdev
from typing import NamedTuple

from dsas.errors import TextsError
from dsas.evaluation.intervals import Interval

Gram = tuple[str, ...]


class FluencyResult(NamedTuple):
    """All in [0, 1]: varied texts have distinct near 1 and repetition near 0. With no n-grams at all, both are 0."""

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
    repeated = [share for text in texts if (share := repetition(text)) is not None]
    return FluencyResult(*distinct, repetition=sum(repeated) / max(1, len(repeated)))


def repetition(text: str) -> float | None:
    """Return the repetition of one text, None when it has fewer than four words."""
    grams = four_grams(text)
    return 1 - _distinct(grams) if grams else None


def four_grams(text: str) -> list[Gram]:
    """Return the runs of four words of a text, in lower case."""
    return _grams(text.lower().split(), 4)


def distinct_2(texts: Sequence[Sequence[str]]) -> Interval:
    """Return distinct_2 of all texts, given by prompt, with a 95 % interval by the jackknife over the prompts.

    A bootstrap would count the n-grams of a prompt drawn twice as repeated.
    Raises TextsError for fewer than 2 prompts.
    """
    if len(texts) < 2:
        raise TextsError(f"expected the texts of at least 2 prompts, got {len(texts)}")
    grams = [[gram for text in of_prompt for gram in _grams(text.lower().split(), 2)] for of_prompt in texts]
    prompts_with = Counter(gram for of_prompt in grams for gram in set(of_prompt))
    alone = [sum(prompts_with[gram] == 1 for gram in set(of_prompt)) for of_prompt in grams]
    total, n = sum(map(len, grams)), len(texts)
    left = [(len(prompts_with) - own) / max(1, total - len(of)) for own, of in zip(alone, grams, strict=True)]
    error = (n - 1) ** 0.5 * pstdev(left)
    share = len(prompts_with) / max(1, total)
    return Interval(share, share - 1.96 * error, share + 1.96 * error, n)


def _grams(words: list[str], n: int) -> list[Gram]:
    return list(zip(*(words[start:] for start in range(n)), strict=False))


def _distinct(grams: list[Gram]) -> float:
    return len(set(grams)) / max(1, len(grams))
