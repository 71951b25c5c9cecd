"""Choosing: which questions stay in the sets, and why the others were dropped.

A question stays with all three answers or goes with all three, so that source, control and target answer the same
questions and do not differ in topic. A question is dropped for one of these reasons, tried in this order:

| reason | what it means |
|---|---|
| too short | an answer of fewer than 3 words |
| length | the unwanted or the neutral answer has more than twice as many words as the other |
| not shown | the judge does not see the behaviour in the unwanted answer |
| shown by neutral, shown by wanted | the judge sees the behaviour where it should not be |
| alike | the unwanted answer is nearly what another answer says, as the inspection of texts finds it |
| repeated | an answer was given before to another question |

Limitations: a judge that drops hard questions more often than easy ones leaves sets of easy ones.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dsas.drafting.answers import Triple
from dsas.fitting.text_checks import NEAR, folded, letter_vectors

LEAST_WORDS = 3
LONGEST_TO_SHORTEST = 2.0
MARGIN = 0.05  # dropping answers changes which words are rare, and so how alike the others are


class Chosen(NamedTuple):
    """What is kept, and what was dropped with the reason; both in the order of the questions."""

    kept: list[Triple]
    dropped: list[tuple[Triple, str]]

    def counts(self) -> dict[str, int]:
        """Return how many were dropped for each reason, the most frequent first."""
        return dict(Counter(reason for _, reason in self.dropped).most_common())


def choose(triples: Sequence[Triple], scores: Float[np.ndarray, "triple 3"], cut: float) -> Chosen:
    """Return what is kept. scores: the judge's, in the order of a triple's answers; above `cut` the behaviour shows."""
    alike = _alike(triples)
    chosen, before = Chosen([], []), set[str]()
    for triple, of, near in zip(triples, scores, alike, strict=True):
        reason = _unfit(triple) or _unlike(of > cut) or ("alike" if near else "")
        said = {folded(answer) for answer in triple.answers}
        reason = reason or ("repeated" if said & before else "")
        if reason:
            chosen.dropped.append((triple, reason))
        else:
            chosen.kept.append(triple)
            before |= said
    return chosen


def _unfit(triple: Triple) -> str:
    unwanted, wanted, neutral = (len(answer.split()) for answer in triple.answers)
    if min(unwanted, wanted, neutral) < LEAST_WORDS:
        return "too short"
    return "length" if max(unwanted, neutral) > LONGEST_TO_SHORTEST * min(unwanted, neutral) else ""


def _unlike(shows: Bool[np.ndarray, " 3"]) -> str:
    unwanted, wanted, neutral = shows
    if not unwanted:
        return "not shown"
    return "shown by neutral" if neutral else "shown by wanted" if wanted else ""


def _alike(triples: Sequence[Triple]) -> Bool[np.ndarray, " triple"]:
    """Return which unwanted answers are near any other answer, as `dsas.fitting.text_checks` measures it."""
    unwanted, others = letter_vectors(
        [triple.answers[0] for triple in triples], [answer for triple in triples for answer in triple.answers[1:]]
    )
    near = (unwanted @ others.T).max(axis=1).toarray().ravel()
    return near >= NEAR - MARGIN
