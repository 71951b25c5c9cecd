"""Judging: which answers show the behaviour, by scores that need not be calibrated.

A judge gives every answer a number, larger where the behaviour shows more: a scorer, a classifier's probability, or the
model's own odds. The cut is chosen from the answers themselves, because a small model may say yes to everything:

    gain(c) = share of unwanted answers above c - 3 * share of neutral answers above c,   cut = argmax gain

so that most answers counted as showing the behaviour were asked to show it, even if a model seldom follows its prompt.
A gain near 0 means that the model never does, or that the judge does not see it, and nothing can be filtered. The AUROC
says how well it separates the two kinds overall.

Limitations: the cut is chosen on the answers that it then filters, so the shares at it are a little too good.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from dsas.errors import TextsError
from dsas.files.json_values import JsonObject

RATIO = "the model's own likelihood ratio"  # of being asked for; it does not know the behaviour
LEAST_GAIN = 0.1
FALSE_WEIGHS = 3.0


@runtime_checkable
class Judge(Protocol):
    """Anything that turns texts into finite numbers, one per text, larger where the behaviour shows more."""

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"] | Sequence[float]:
        """Return a number for each text."""
        ...


class Verdict(NamedTuple):
    """What a judge says of all answers.

    judge: its name. auroc: AUROC of unwanted against neutral answers; 0.5 is chance. cut: answers above it show the
    behaviour. shares: share of the answers of each kind above it.
    """

    judge: str
    auroc: float
    cut: float
    shares: dict[str, float]

    @property
    def says(self) -> str:
        """What an answer above the cut does, as far as the judge can tell."""
        return "read as asked for" if self.judge == RATIO else "show the behaviour"

    @property
    def tells(self) -> bool:
        """Whether the judge separates unwanted from neutral answers well enough to filter by it."""
        return self.shares["unwanted"] - FALSE_WEIGHS * self.shares["neutral"] >= LEAST_GAIN

    def as_dict(self) -> JsonObject:
        """Return the verdict as JSON-ready values."""
        return self._asdict()


def verdict(judge: str, scores: dict[str, Float[np.ndarray, " answer"]]) -> Verdict:
    """Return what a judge says of the answers of each kind, "unwanted" and "neutral" among them.

    Raises TextsError for a score that is not finite.
    """
    from sklearn.metrics import roc_auc_score

    for kind, values in scores.items():
        if not np.isfinite(values).all():
            place = int(np.flatnonzero(~np.isfinite(values))[0])
            raise TextsError(f"expected finite numbers from the judge {judge}, got {values[place]} for a {kind} answer")
    shown, plain = scores["unwanted"], scores["neutral"]
    area = roc_auc_score([1] * len(shown) + [0] * len(plain), np.concatenate([shown, plain]))
    cut = _cut(shown, plain)
    return Verdict(judge, float(area), cut, {kind: float((values > cut).mean()) for kind, values in scores.items()})


def _cut(shown: Float[np.ndarray, " shown"], plain: Float[np.ndarray, " plain"]) -> float:
    values = np.unique(np.concatenate([shown, plain]))
    cuts = np.append((values[1:] + values[:-1]) / 2, values[-1])
    gains = (shown[:, None] > cuts).mean(0) - FALSE_WEIGHS * (plain[:, None] > cuts).mean(0)
    return float(cuts[gains.argmax()])
