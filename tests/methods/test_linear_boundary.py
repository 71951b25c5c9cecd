"""Held-out accuracy: of folds drawn with the given seed, counted here once more by hand."""

from collections.abc import Callable
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold
from torch import Tensor

import dsas
from dsas.methods.linear_boundary import Boundary, Labelled, held_out_accuracy, separate
from dsas.model.forward_pass import ForwardPass

SEEDS = range(6)
# Each with the value above which its regulator takes a token for one of the source.
METHODS: dict[str, tuple[Callable[..., Any], float]] = {
    "logistic": (dsas.Logistic.fit, 0.5),
    "rectified": (dsas.Rectified.fit, 0.0),
    "mera": (dsas.Mera.fit, 0.0),
    "halfspace": (dsas.HalfSpace.fit, 0.0),
    "cast": (dsas.Cast.fit, 0.5),
}


def sets() -> tuple[Tensor, Tensor, Tensor]:
    """Return two sets that are hard to tell apart, and a target on the far side of the second."""
    draw = torch.Generator().manual_seed(3)
    direction = torch.randn(8, generator=draw) * 0.4
    source, control, target = (torch.randn(count, 8, generator=draw) for count in (24, 18, 10))
    return source + direction, control - direction, target - 2 * direction


def by_hand(fit: Callable[..., Any], above: float, seed: int, folds: int) -> float:
    """Return the mean over folds of the balanced accuracy of what `fit` makes of the others."""
    source, control, target = sets()
    x, y = torch.cat([source, control]), np.repeat([1, 0], [len(source), len(control)])
    scores = []
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y):
        regulator = fit(x[train][y[train] == 1], x[train][y[train] == 0], target, seed=seed).regulator
        values = regulator(x[test][:, None], ForwardPass(len(test), 1, past=1))
        if isinstance(regulator, dsas.Cast):  # it looks at whole prompts, and leaves their first token out
            prompts = x[test][:, None].repeat(1, 2, 1)
            values = regulator(prompts, ForwardPass(len(test), 2))[:, -1:]
        right = (values.flatten() > above).numpy() == (y[test] == 1)
        scores.append(np.mean([right[y[test] == label].mean() for label in (0, 1)]))
    return float(np.mean(scores))


@pytest.mark.parametrize("method", METHODS)
def test_the_accuracy_is_that_of_the_folds_which_the_seed_draws(method: str) -> None:
    fit, above = METHODS[method]
    found = [fit(*sets(), seed=seed).accuracy for seed in SEEDS]
    assert found == pytest.approx([by_hand(fit, above, seed, 5) for seed in SEEDS])
    assert len(set(found)) > 1


@pytest.mark.parametrize("method", ["logistic", "halfspace", "cast"])
def test_the_accuracy_is_that_of_as_many_folds_as_were_asked_for(method: str) -> None:
    fit, above = METHODS[method]
    found = [fit(*sets(), folds=folds).accuracy for folds in (2, 3, 9)]
    assert found == pytest.approx([by_hand(fit, above, 0, folds) for folds in (2, 3, 9)])
    assert len(set(found)) > 1


def test_with_groups_no_text_is_in_two_folds_and_the_seed_draws_which() -> None:
    source, control, _ = sets()
    groups = torch.cat([torch.arange(24) // 4, 100 + torch.arange(18) // 3])
    data, seen = Labelled.of(source, control), []

    def draw(train: Labelled) -> Boundary:
        seen.append(train.x)
        return separate(train, components=5)

    for seed in SEEDS:
        seen.clear()
        found = held_out_accuracy(data, draw, seed=seed, groups=groups.numpy())
        splits = list(StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(*data, groups.numpy()))
        for train, (expected, _held) in zip(seen, splits, strict=True):
            np.testing.assert_array_equal(train, data.x[expected])
        told = dsas.Logistic.fit(source, control, control, seed=seed, groups=groups)
        assert told.accuracy == pytest.approx(found)


@pytest.mark.parametrize("method", ["logistic", "rectified", "mera"])
def test_the_seed_reaches_the_randomised_pca_that_many_dimensions_get(method: str) -> None:
    fit, _ = METHODS[method]
    draw = torch.Generator().manual_seed(0)
    source, control = torch.randn(60, 700, generator=draw), torch.randn(60, 700, generator=draw)
    one, again, other = (fit(source, control, control - source.mean(0), seed=seed).regulator for seed in (1, 1, 2))
    assert torch.equal(one.theta, again.theta)
    assert not torch.equal(one.theta, other.theta)
    data = Labelled.of(source, control)
    for seed, regulator in ((1, one), (2, other)):
        expected = separate(data, components=5, seed=seed).theta
        found = regulator.theta.double().numpy()
        np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(
    "fit", [dsas.Lineas.fit, partial(dsas.LinearTransport.fit, support="everywhere")], ids=["lineas", "linear-act"]
)
def test_the_seed_draws_as_many_of_the_larger_set_as_the_smaller_one_has(fit: Callable[..., Any]) -> None:
    source, target = torch.randn(3, 1), torch.arange(9.0).view(9, 1) ** 2
    seen = set()
    for seed in range(20):
        fitted = fit(source, target, seed=seed)
        mean = float(fitted(source[None]).mean())  # a least-squares line goes through both means
        seen.add(round(mean, 3))
        assert any(abs(mean - sum(kept) / 3) < 1e-2 for kept in combinations(target.flatten().tolist(), 3))
        assert torch.equal(fit(source, target, seed=seed).offset, fitted.offset)
    assert len(seen) > 5
