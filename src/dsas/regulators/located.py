"""Located: h(t) = sigmoid(theta . t + bias), fitted on the tokens that show the behaviour, which it finds itself.

A source example shows the behaviour at some of its tokens: a colour at the positions of one object, a word at the
tokens that attend to it. If all tokens get the label of their example, the others teach a regulator to answer one half
wherever the sets look alike. So

    1  a boundary between all tokens of the source and all of control, balanced
    2  inside: the source tokens that it scores above the (1 - false_positives) quantile of control tokens
    3  a boundary between those inside and all of control, not balanced; steps 2 and 3 run `rounds` times in all

With means (one vector per example), it does the same with whole examples. Each boundary is an L2 logistic regression
on centred activations of one common scale.

Source: this project (docs/lab/findings.md); multiple-instance learning from the surest members of each bag, as in
mi-SVM (Andrews et al. 2002). Limitations: a behaviour that every source token shows, such as a style, has no inside; at
most 5,000 tokens per set are read, evenly spread.
"""

from typing import ClassVar, final

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.affine_edit import Form
from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Boundary
from dsas.regulators.base import FittedRegulator
from dsas.regulators.linear import LinearRegulator

MOST = 5_000
Rows = Float[np.ndarray, "sample dim"]


@final
class Located(LinearRegulator):
    """A sigmoid of one projection: theta (dim,) in units of one over the activation, bias a scalar."""

    name: ClassVar[str] = "located"
    facts: ClassVar[Facts] = Facts(
        formula="sigmoid(theta . t + bias), fitted on the source tokens that differ from control",
        paper="-",
        left_out="not for behaviours that all tokens show",
        flops="2 d",
    )
    form: ClassVar[Form] = "sigmoid"

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        false_positives: float = 0.02,
        rounds: int = 3,
        inverse_penalty: float = 10.0,
        folds: int = 5,
        seed: int = 0,
        groups: Int[Tensor, " all_samples"] | None = None,
    ) -> FittedRegulator:
        """Return the regulator and its balanced accuracy on examples of other folds; target is not looked at.

        An example counts as source when any of its tokens is above a half. false_positives: share of control tokens
        beyond the cut of a round, in (0, 1). rounds: >= 0; 0 is logistic regression on all tokens.
        inverse_penalty: sklearn's C, > 0. folds: 2 or more, lowered to the size of the smaller set. seed: seed of the
        folds.
        groups: the example of each sample, source then control, where samples are tokens.
        Raises OptionError outside these ranges.
        """
        if not 0 < false_positives < 1 or rounds < 0 or inverse_penalty <= 0 or folds < 2:
            raise OptionError(
                "expected false_positives in (0, 1), rounds >= 0, inverse_penalty > 0 and folds >= 2, got "
                f"{false_positives}, {rounds}, {inverse_penalty} and {folds}"
            )
        owners = np.arange(len(source) + len(control)) if groups is None else groups.numpy()
        kept = [_spread(len(source)), len(source) + _spread(len(control))]
        x = np.concatenate([source.double().numpy()[kept[0]], control.double().numpy()[kept[1] - len(source)]])
        y, owners = np.repeat([1, 0], list(map(len, kept))), owners[np.concatenate(kept)]

        def draw(rows: Bool[np.ndarray, " sample"] | slice) -> Boundary:
            return _located(x[rows], y[rows], false_positives, rounds, inverse_penalty)

        scores = np.zeros(len(y))
        for test in _folds(y, owners, folds, seed):
            scores[test] = draw(~test).scores(x[test])
        units = np.unique(owners)
        says = np.array([(scores[owners == unit] > 0).any() for unit in units])
        is_source = np.array([y[owners == unit].max() == 1 for unit in units])
        accuracy = (says[is_source].mean() + (~says[~is_source]).mean()) / 2
        return FittedRegulator(cls.beyond(draw(slice(None))), float(accuracy))


def _located(x: Rows, y: Int[np.ndarray, " sample"], share: float, rounds: int, penalty: float) -> Boundary:
    """Return the boundary of the last round, or of an earlier one if no source token is beyond the cut."""
    found = _drawn(x, y, penalty, balanced=True)
    for _ in range(rounds):
        scores = found.scores(x)
        inside = (y == 1) & (scores > np.quantile(scores[y == 0], 1 - share))
        if not inside.any():
            break
        kept = inside | (y == 0)
        found = _drawn(x[kept], y[kept], penalty, balanced=False)
    return found


def _drawn(x: Rows, y: Int[np.ndarray, " sample"], penalty: float, *, balanced: bool) -> Boundary:
    from sklearn.linear_model import (
        LogisticRegression,
    )  # takes longer to import than all of dsas

    mean, scale = x.mean(0), float(x.std(0).max())
    if not scale:  # nothing separates the sets
        return Boundary(np.zeros(x.shape[1]), 0.0)
    logistic = LogisticRegression(C=penalty, class_weight="balanced" if balanced else None, max_iter=3000, tol=1e-6)
    logistic.fit((x - mean) / scale, y)
    theta = np.asarray(logistic.coef_)[0] / scale
    return Boundary(theta, float(np.asarray(logistic.intercept_)[0] - theta @ mean))


def _folds(
    y: Int[np.ndarray, " sample"], owners: Int[np.ndarray, " sample"], folds: int, seed: int
) -> list[Bool[np.ndarray, " sample"]]:
    """Return which samples each fold leaves out: whole examples, equally many of each set."""
    from sklearn.model_selection import StratifiedKFold

    units, first = np.unique(owners, return_index=True)
    count = max(2, min(folds, *np.bincount(y[first], minlength=2)))
    splits = StratifiedKFold(count, shuffle=True, random_state=seed).split(units[:, None], y[first])
    return [np.isin(owners, units[test]) for _, test in splits]


def _spread(count: int) -> Int[np.ndarray, " kept"]:
    """Return which of this many samples are read: at most `MOST`, evenly spread."""
    return np.arange(count) if count <= MOST else np.linspace(0, count - 1, MOST).astype(int)
