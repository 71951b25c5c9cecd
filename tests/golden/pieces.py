"""Pieces of which the golden numbers are made: directions, probes, held-out accuracy; NumPy and scikit-learn alone."""

from collections.abc import Callable
from itertools import product

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

Array = np.ndarray


def first_direction_of_differences(first: Array, second: Array) -> Array:
    """Return the first eigenvector of the second moment of all pairwise differences."""
    differences = np.array([a - b for a, b in product(first, second)])
    return np.linalg.eigh(differences.T @ differences)[1][:, -1]


def probe(x: Array, y: Array, components: int) -> tuple[Array, float]:
    """Return theta and bias of a balanced L2 logistic regression (C = 1) on principal components of common scale."""
    mean = x.mean(0)
    variances, axes = np.linalg.eigh(np.cov(x.T))
    scale = np.sqrt(variances[-1])
    kept = axes[:, ::-1][:, :components]
    weights = np.where(y == 1, len(y) / (2 * (y == 1).sum()), len(y) / (2 * (y == 0).sum()))
    logistic = LogisticRegression(C=1.0, tol=1e-10, max_iter=100_000)
    logistic.fit((x - mean) @ kept / scale, y, sample_weight=weights)
    theta = kept @ logistic.coef_[0] / scale
    return theta, float(logistic.intercept_[0] - theta @ mean)


def ridge(x: Array, y: Array) -> tuple[Array, float]:
    """Return theta and bias of a balanced L2 logistic regression (C = 0.01) on standardised neurons."""
    mean, scale = x.mean(0), x.std(0)
    weights = np.where(y == 1, len(y) / (2 * (y == 1).sum()), len(y) / (2 * (y == 0).sum()))
    logistic = LogisticRegression(C=0.01, tol=1e-10, max_iter=100_000)
    logistic.fit((x - mean) / scale, y, sample_weight=weights)
    theta = logistic.coef_[0] / scale
    return theta, float(logistic.intercept_[0] - theta @ mean)


def plain_regression(x: Array, y: Array, weights: Array) -> tuple[Array, float]:
    """Return theta and bias of an L2 logistic regression (C = 10) on centred samples of one common scale."""
    mean, scale = x.mean(0), x.std(0).max()
    logistic = LogisticRegression(C=10.0, tol=1e-10, max_iter=100_000)
    logistic.fit((x - mean) / scale, y, sample_weight=weights)
    theta = logistic.coef_[0] / scale
    return theta, float(logistic.intercept_[0] - theta @ mean)


def labelled(first: Array, second: Array) -> tuple[Array, Array]:
    """Return both sets in one, and the labels 1 and 0."""
    return np.concatenate([first, second]), np.array([1] * len(first) + [0] * len(second))


def accuracy_of(x: Array, y: Array, learn: Callable[[Array, Array], Callable[[Array], Array]]) -> float:
    """Return the mean over five stratified folds of the mean of both labels' recalls."""
    scores = []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(x, y):
        answers = learn(x[train], y[train])(x[test])
        scores.append(np.mean([(answers[y[test] == label] == label).mean() for label in (0, 1)]))
    return float(np.mean(scores))


def percentile(values: Array, percent: float) -> float:
    """Return a percentile of one neuron's samples, straight between its neighbours."""
    ranked = np.sort(values)
    place = percent / 100 * (len(ranked) - 1)
    below = int(place)
    above = min(below + 1, len(ranked) - 1)
    return float(ranked[below] + (place - below) * (ranked[above] - ranked[below]))


def cosine(m: Array, c: Array) -> float:
    """Return CAST's cos(m, tanh(c (c . m) / (c . c))), with the projection as a matrix."""
    squashed = np.tanh(np.outer(c, c) / (c @ c) @ m)
    return float(m @ squashed / np.linalg.norm(m) / np.linalg.norm(squashed))
