"""Tuned boundary: a linear boundary whose evidence adds up over tokens, with a cut at which control seldom fires.

    s_i  =  theta . t_i + bias                                    evidence of one token; 0 is the mean of control tokens
    e_i  =  (sum_{j <= i} m^(i-j) s_j) / (sum_{j <= i} m^(i-j) + prior)        evidence of the row so far
    h_i  =  sigmoid(e_i - cut)

The memory m is 1 for the mean of all tokens so far, and 0 (without a prior) for the token alone. Every row is treated
as if it began with `prior` tokens of average control text, so that the first few tokens decide little.

theta is fitted by `separate_ridge`. Its scale is such that e_i has the standard deviation `sharpness` over held-out
control, and the cut such that h has the mean `false_positives` there. Held out means that every text is scored by a
boundary that was fitted without it, token by token where tokens are available (`dsas.fit` reads them), else by its
pooled vector.

Source: this project. Twenty tokens of a text say more than one token, and the cost of steering on a clean text depends
on how seldom it is taken for the other kind (docs/lab/findings.md).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.linear_boundary import Boundary, CrossValidated, Labelled, cross_validated, separate_ridge

Scores = Sequence[Float[np.ndarray, " token"]]  # folds of texts


class TokenScores(NamedTuple):
    """Scores of the tokens of source and control texts, each by a boundary that was fitted without its text.

    counted: which tokens of each source and control text count; all when it is None. Other tokens, such as those of a
    prompt before its answer, only contribute to the row's evidence.
    """

    source: Scores
    control: Scores
    counted: tuple[Sequence[Bool[np.ndarray, " token"]], Sequence[Bool[np.ndarray, " token"]]] | None = None

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> "TokenScores":
        """Return `function` of each text's scores."""
        return TokenScores(list(map(function, self.source)), list(map(function, self.control)), self.counted)

    def of_counted(self) -> "TokenScores":
        """Return only the scores of tokens that count."""
        if self.counted is None:
            return self
        source, control = (
            [own[counts] for own, counts in zip(scores, flags, strict=True)]
            for scores, flags in zip((self.source, self.control), self.counted, strict=True)
        )
        return TokenScores(source, control)


class TunedBoundary(NamedTuple):
    """A boundary with its cut, and the values that it gives to the held-out tokens that count."""

    boundary: Boundary
    cut: float
    values: TokenScores


class Tuning(NamedTuple):
    """What a boundary is tuned to, and how its evidence adds up; see the module.

    false_positives: mean value on held-out control, in (0, 1). sharpness: > 0. prior: tokens, >= 0. memory: 0 to 1.
    """

    false_positives: float = 0.02
    sharpness: float = 2.0
    prior: float = 8.0
    memory: float = 0.9

    def check(self) -> None:
        """Raise OptionError for a number outside its range."""
        if not (0 < self.false_positives < 1 and self.sharpness > 0 and self.prior >= 0 and 0 <= self.memory <= 1):
            raise OptionError(
                "expected 0 < false_positives < 1, sharpness > 0, prior >= 0 and 0 <= memory <= 1, got "
                f"{self.false_positives}, {self.sharpness}, {self.prior} and {self.memory}"
            )

    def so_far(self, scores: Float[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
        """Return the evidence of a row up to each of its tokens."""
        if self.memory == 1:
            return np.cumsum(scores) / (np.arange(1, len(scores) + 1) + self.prior)
        found, total, weight = np.empty(len(scores)), 0.0, 0.0
        for place, score in enumerate(scores):
            total, weight = self.memory * total + score, self.memory * weight + 1
            found[place] = total / (weight + self.prior)
        return found

    def of(self, boundary: Boundary, scores: TokenScores) -> TunedBoundary:
        """Return a boundary scaled, centred and cut by the scores of held-out texts."""
        centre = float(np.concatenate(scores.of_counted().control).mean())
        evidence = scores.mapped(lambda own: self.so_far(own - centre)).of_counted()
        control = np.concatenate(evidence.control)
        spread = float(control.std())
        scale = self.sharpness / spread if spread > 0 else 1.0
        cut = _cut(scale * control, self.false_positives)
        values = evidence.mapped(lambda own: _sigmoid(scale * own - cut))
        return TunedBoundary(Boundary(scale * boundary.theta, scale * (boundary.bias - centre)), cut, values)


class PooledFit(NamedTuple):
    """The fit on pooled vectors: the boundary tuned on them, and how single tokens can improve it.

    tune: returns the boundary tuned on the scores of tokens, each by a boundary fitted without its text.
    """

    boundary: TunedBoundary
    held_out: CrossValidated
    tune: Callable[[TokenScores], TunedBoundary]


def tuned_boundary(
    source: Float[Tensor, "text dim"],
    control: Float[Tensor, "text2 dim"],
    tuning: Tuning,
    *,
    inverse_penalty: float,
    seed: int,
    folds: int = 5,
    groups: Int[Tensor, " all_samples"] | None = None,
) -> PooledFit:
    """Return the boundary as fitted and tuned on pooled vectors.

    groups: the text of each sample, source then control, where samples are single tokens: no text is in two folds, and
    `held_out` says for each text, by number, which boundary was fitted without it.
    Raises OptionError for numbers outside their ranges.
    """
    tuning.check()
    if inverse_penalty <= 0:
        raise OptionError(f"inverse_penalty must be > 0, got {inverse_penalty}")
    data = Labelled.of(source, control)
    draw = partial(separate_ridge, inverse_penalty=inverse_penalty)
    owners = None if groups is None else groups.numpy()
    found, boundary = cross_validated(data, draw, folds=folds, seed=seed, groups=owners), draw(data)
    pooled = [found.boundaries[fold].scores(x[None]) for x, fold in zip(data.x, found.folds, strict=True)]
    scores = TokenScores(pooled[: len(source)], pooled[len(source) :])
    whole = tuning._replace(prior=0.0)  # a pooled vector stands for a whole text
    if owners is not None:
        of_text = np.zeros(owners.max() + 1, dtype=int)
        of_text[owners] = found.folds
        found = found._replace(folds=of_text)
    return PooledFit(whole.of(boundary, scores), found, partial(tuning.of, boundary))


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(x, -60, 60)))


def _cut(evidence: Float[np.ndarray, " token"], rate: float) -> float:
    """Return where sigmoid(evidence - cut) has the mean `rate`, by halving; it falls as the cut rises."""
    low, high = float(evidence.min()) - 40, float(evidence.max()) + 40
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _sigmoid(evidence - middle).mean() > rate else (low, middle)
    return (low + high) / 2
