"""Logistic: h(t) = sigmoid(theta . t + b), the regulator of DSAS.

Learned on pooled activations of source (label 1) against control (label 0) and applied to single tokens. The fit is a
PCA to r components (no whitening; one common scale, so that the penalty means the same at every site and model),
then L2 logistic regression with balanced classes, both folded into one vector. With PCA mean mu, components
P (dim, r), common scale s and logistic weights v, c:

    theta = P v / s,    b = c - theta . mu

Source: DSAS (arXiv 2512.03661, section 3.2; r = 5). The held-out accuracy decides whether a site is steered at all:
without cross-validation it is always 1 when there are far fewer texts than dimensions. Left out: per-token labels.
"""

from typing import ClassVar, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.regulators.base import FittedRegulator, Regulator
from dsas.step import Step


class Logistic(Regulator):
    """A sigmoid of one projection: theta (dim,) in units of one over the activation, bias a scalar."""

    name: ClassVar[str] = "logistic"
    theta: Tensor
    bias: Tensor

    def __init__(self, theta: Float[Tensor, " dim"], bias: Float[Tensor, ""]) -> None:
        """Keep the projection and its offset."""
        super().__init__()
        self.keep(theta=theta, bias=bias)

    @classmethod
    def fit(
        cls,
        source: Float[Tensor, "text dim"],
        control: Float[Tensor, "text2 dim"],
        *,
        components: int = 5,
        inverse_penalty: float = 1.0,
        folds: int = 5,
        seed: int = 0,
    ) -> FittedRegulator:
        """Return the regulator and its balanced accuracy over stratified folds.

        components: principal components kept, 1 to min(texts, dim). inverse_penalty: sklearn's C, > 0.
        folds: 2 or more, lowered to the size of the smaller set. seed: of the folds and of the randomised PCA.
        Raises OptionError outside these ranges.
        """
        x = torch.cat([source, control]).double().numpy()
        y = np.repeat([1, 0], [len(source), len(control)])
        if not 1 <= components <= min(x.shape):
            raise OptionError(f"components must be from 1 to {min(x.shape)} (texts, dim), got {components}")
        if inverse_penalty <= 0 or folds < 2:
            raise OptionError(f"inverse_penalty must be > 0 and folds >= 2, got {inverse_penalty} and {folds}")
        smallest = min(folds, len(source), len(control))
        accuracy = _held_out_accuracy(x, y, components, inverse_penalty, folds=smallest, seed=seed)
        plane = _separate(x, y, components, inverse_penalty, seed)
        theta = torch.from_numpy(plane.theta).float()
        return FittedRegulator(cls(theta, torch.tensor(plane.bias, dtype=torch.float32)), accuracy)

    def forward(self, t: Float[Tensor, "batch token dim"], step: Step) -> Float[Tensor, "batch token 1"]:
        """Return sigmoid(theta . t + b), computed in float32."""
        return torch.sigmoid(t.to(self.theta.dtype) @ self.theta + self.bias).unsqueeze(-1)


class _Plane(NamedTuple):
    """The boundary theta . x + bias = 0 in the space of the activations."""

    theta: np.ndarray
    bias: float


def _separate(x: np.ndarray, y: np.ndarray, components: int, inverse_penalty: float, seed: int) -> _Plane:
    from sklearn.decomposition import PCA  # here, because it takes longer to import than all of dsas
    from sklearn.linear_model import LogisticRegression

    if (x == x[0]).all():  # nothing can be told apart, and a PCA would divide by zero
        return _Plane(np.zeros(x.shape[1]), 0.0)
    pca = PCA(min(components, *x.shape), random_state=seed).fit(x)
    axes, variances, mean = map(np.asarray, (pca.components_, pca.explained_variance_, pca.mean_))
    scale = float(np.sqrt(variances[0])) or 1.0
    logistic = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=1000)
    logistic.fit(pca.transform(x) / scale, y)
    weights, offset = np.asarray(logistic.coef_)[0], np.asarray(logistic.intercept_)[0]
    theta = axes.T @ weights / scale
    return _Plane(theta, float(offset - theta @ mean))


def _held_out_accuracy(
    x: np.ndarray, y: np.ndarray, components: int, inverse_penalty: float, *, folds: int, seed: int
) -> float:
    """Return the mean over folds of the balanced accuracy (arithmetic mean of both classes' recall)."""
    from sklearn.model_selection import StratifiedKFold

    scores = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        plane = _separate(x[train], y[train], components, inverse_penalty, seed)
        answered = (x[test] @ plane.theta + plane.bias > 0).astype(int)
        scores.append(np.mean([(answered[y[test] == label] == label).mean() for label in (0, 1)]))
    return float(np.mean(scores))
