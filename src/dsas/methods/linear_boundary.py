"""Linear boundary: a boundary between two sets of vectors, and its accuracy on vectors it was not fitted on.

    log-odds(t) = theta . t + bias

It is fitted in one of two ways, each folded into one vector:

- `separate`: a PCA to r components (no whitening; one common scale, so that the penalty means the same at every site
  and model), then L2 logistic regression with balanced classes. With PCA mean mu, components P (dim, r), common scale s
  and logistic weights v, c:  theta = P v / s,  bias = c - theta . mu.
- `separate_ridge`: every neuron standardised to mean 0 and variance 1, then L2 logistic regression with balanced
  classes and a strong penalty, in the whole space. With means mu, standard deviations s:  theta = v / s,  bias = c -
  theta . mu.

Source: DSAS (arXiv 2512.03661, section 3.2) for the first. Limitations: linear boundaries only.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsas.errors import OptionError

ALL_COMPONENTS = 10**9


class Boundary(NamedTuple):
    """The boundary theta . t + bias = 0 in the space of the activations; `theta` (dim,), float64."""

    theta: Float[np.ndarray, " dim"]
    bias: float

    def scores(self, x: Float[np.ndarray, "sample dim"]) -> Float[np.ndarray, " sample"]:
        """Return the log-odds of each sample."""
        return x @ self.theta + self.bias

    def answers(self, x: Float[np.ndarray, "sample dim"]) -> Int[np.ndarray, " sample"]:
        """Return 1 for each sample on the side of the first set, 0 for the others."""
        return (self.scores(x) > 0).astype(int)


class Labelled(NamedTuple):
    """Two sets of vectors in one: `x` (sample, dim) float64, `y` 1 for the first set and 0 for the second."""

    x: Float[np.ndarray, "sample dim"]
    y: Int[np.ndarray, " sample"]

    @classmethod
    def of(cls, first: Float[Tensor, "sample dim"], second: Float[Tensor, "sample2 dim"]) -> "Labelled":
        """Put two sets together."""
        x = torch.cat([first, second]).double().numpy()
        return cls(x, np.repeat([1, 0], [len(first), len(second)]))


@runtime_checkable
class Answers(Protocol):
    """Anything that separates two sets, such as a `Boundary`."""

    def answers(self, x: Float[np.ndarray, "sample dim"]) -> Int[np.ndarray, " sample"]:
        """Return 1 for each sample that it takes for one of the first set, 0 for the others."""
        ...


Draw = Callable[[Labelled], Answers]


def separate(data: Labelled, *, components: int, inverse_penalty: float = 1.0, seed: int = 0) -> Boundary:
    """Return the boundary fitted by PCA and logistic regression; more `components` than there can be means no PCA.

    inverse_penalty: sklearn's C, > 0. seed: seed of the randomised PCA.
    """
    from sklearn.decomposition import PCA  # imported here, because it takes longer to import than all of dsas
    from sklearn.linear_model import LogisticRegression

    x, y = data
    if (x == x[0]).all():  # the sets are the same, and a PCA would divide by zero
        return Boundary(np.zeros(x.shape[1]), 0.0)
    pca = PCA(min(components, *x.shape), random_state=seed).fit(x)
    axes, variances, mean = map(np.asarray, (pca.components_, pca.explained_variance_, pca.mean_))
    scale = float(np.sqrt(variances[0])) or 1.0
    logistic = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
    logistic.fit(pca.transform(x) / scale, y)
    weights, offset = np.asarray(logistic.coef_)[0], np.asarray(logistic.intercept_)[0]
    theta = axes.T @ weights / scale
    return Boundary(theta, float(offset - theta @ mean))


def separate_ridge(data: Labelled, *, inverse_penalty: float = 0.01) -> Boundary:
    """Return the boundary fitted by a penalised logistic regression on standardised neurons.

    inverse_penalty: sklearn's C, > 0.
    """
    from sklearn.linear_model import LogisticRegression

    x, y = data
    scale = x.std(0)
    if not scale.any():  # nothing separates the sets
        return Boundary(np.zeros(x.shape[1]), 0.0)
    mean, scale = x.mean(0), np.where(scale > 0, scale, np.inf)  # a neuron that never varies says nothing
    logistic = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
    logistic.fit((x - mean) / scale, y)
    theta = np.asarray(logistic.coef_)[0] / scale
    return Boundary(theta, float(np.asarray(logistic.intercept_)[0] - theta @ mean))


class CrossValidated(NamedTuple):
    """What boundaries say of samples that they were fitted without.

    accuracy: mean over folds of the balanced accuracy (mean of both sets' recall), in [0, 1]. boundaries: one per fold.
    folds: which of them was fitted without each sample.
    """

    accuracy: float
    boundaries: tuple[Any, ...]
    folds: Int[np.ndarray, " sample"]


def cross_validated(
    data: Labelled, draw: Draw, *, folds: int = 5, seed: int = 0, groups: Int[np.ndarray, " sample"] | None = None
) -> CrossValidated:
    """Return what boundaries fitted on stratified folds say of the samples left out.

    folds: 2 or more, lowered to the size of the smaller set. groups: samples of one group are never in two folds.
    Raises OptionError for fewer than 2 folds.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    if folds < 2:
        raise OptionError(f"folds must be >= 2, got {folds}")
    x, y = data
    units = y if groups is None else np.array([y[groups == group].max() for group in np.unique(groups)])
    count = min(folds, *np.bincount(units, minlength=2))
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    splits = kind(max(2, count), shuffle=True, random_state=seed).split(x, y, groups)
    scores, boundaries, left_out = [], [], np.zeros(len(y), dtype=int)
    for number, (train, test) in enumerate(splits):
        boundary = draw(Labelled(x[train], y[train]))
        right = boundary.answers(x[test]) == y[test]
        scores.append(np.mean([right[y[test] == label].mean() for label in (0, 1) if (y[test] == label).any()]))
        boundaries.append(boundary)
        left_out[test] = number
    return CrossValidated(float(np.mean(scores)), tuple(boundaries), left_out)


def held_out_accuracy(
    data: Labelled, draw: Draw, *, folds: int = 5, seed: int = 0, groups: Int[np.ndarray, " sample"] | None = None
) -> float:
    """Return the accuracy that `cross_validated` finds, with its options and errors."""
    return cross_validated(data, draw, folds=folds, seed=seed, groups=groups).accuracy
