"""Logistic against PCA by singular values and sklearn's logistic regression, and against what theory says of it."""

from math import erf, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from makers import check_golden_regulator
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator


def fitted_on(source: Tensor, control: Tensor, **options: Any) -> FittedRegulator:
    """Return the fit; its target is of no account."""
    return dsas.Logistic.fit(source, control, control, **options)


def apart(rows: tuple[int, int], dim: int, distance: float) -> tuple[Tensor, Tensor]:
    """Return source and control of unit variance, whose means are `distance` apart along a diagonal, off the origin."""
    shift = torch.full((dim,), distance / sqrt(dim))
    return torch.randn(rows[0], dim) + shift + 3, torch.randn(rows[1], dim) + 3


@pytest.mark.parametrize(("components", "penalty"), [(5, 1.0), (1, 1.0), (8, 0.01)])
def test_the_folded_vector_is_pca_and_then_logistic_regression(components: int, penalty: float) -> None:
    source, control = apart((30, 20), 24, 3.0)
    source[:, 0] *= 10  # one direction of large variance, so that a wrong scale is seen
    fitted = fitted_on(source, control, components=components, inverse_penalty=penalty).regulator

    x, y = torch.cat([source, control]).double().numpy(), np.repeat([1, 0], [30, 20])
    mean = x.mean(0)
    _, singular, rows = np.linalg.svd(x - mean, full_matrices=False)
    scale = singular[0] / np.sqrt(len(x) - 1)
    z = (x - mean) @ rows[:components].T / scale
    logistic = LogisticRegression(C=penalty, class_weight="balanced", max_iter=1000, tol=1e-8).fit(z, y)
    expected = logistic.predict_proba(z)[:, 1]

    got = fitted(torch.cat([source, control])[None], ForwardPass(1, 50))[0, :, 0].numpy()
    np.testing.assert_allclose(got, expected, atol=2e-3)
    theta = fitted.get_buffer("theta").double().numpy()
    np.testing.assert_allclose(theta, rows[:components].T @ logistic.coef_[0] / scale, atol=1e-2 * np.abs(theta).max())


def test_the_answer_to_a_token_is_the_sigmoid_of_theta_times_the_token_plus_the_bias() -> None:
    theta, bias, t = torch.randn(6), torch.tensor(-0.7), torch.randn(2, 3, 6)
    got = dsas.Logistic(theta, bias)(t, ForwardPass(2, 3))
    expected = 1 / (1 + np.exp(-(t.numpy().astype(np.float64) @ theta.numpy() - 0.7)))
    np.testing.assert_allclose(got.squeeze(-1).numpy(), expected, rtol=1e-5)


def test_the_fit_does_not_depend_on_the_units_of_the_activations() -> None:
    source, control = apart((20, 20), 16, 2.0)
    one, thousand = (fitted_on(unit * source, unit * control) for unit in (1.0, 1000.0))
    assert one.accuracy == thousand.accuracy
    forward_pass = ForwardPass(1, 20)
    torch.testing.assert_close(
        one.regulator(source[None], forward_pass),
        thousand.regulator(1000 * source[None], forward_pass),
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_accuracy_on_pure_noise_is_one_half_although_the_training_set_is_separated() -> None:
    accuracies = [fitted_on(*apart((24, 24), 512, 0.0)).accuracy for _ in range(12)]
    assert abs(np.mean(accuracies) - 0.5) < 0.07  # 4 standard errors of 12 x 48 answers
    source, control = apart((24, 24), 512, 0.0)
    everything = fitted_on(source, control, components=48, inverse_penalty=1e6).regulator
    right = [everything(source[None], ForwardPass(1, 24)) > 0.5, everything(control[None], ForwardPass(1, 24)) < 0.5]
    assert all(bool(answers.all()) for answers in right)


def test_the_accuracy_of_two_gaussians_is_what_theory_gives() -> None:
    """Means 2 apart at unit variance: the best boundary is right with the probability Phi(1) = 0.841."""
    fitted = fitted_on(*apart((1000, 1000), 4, 2.0), components=4)
    assert fitted.accuracy == pytest.approx(0.5 * (1 + erf(1 / sqrt(2))), abs=0.03)


def test_ten_times_more_control_than_source_does_not_make_control_the_answer_to_everything() -> None:
    source, control = apart((200, 2000), 4, 2.0)
    fitted = fitted_on(source, control, components=4)
    answers = [
        float((fitted.regulator(x[None], ForwardPass(1, len(x))) > 0.5).float().mean()) for x in (source, control)
    ]
    assert answers == pytest.approx([0.841, 0.159], abs=0.06)
    assert fitted.accuracy == pytest.approx(0.841, abs=0.05)


def test_four_texts_a_set_are_enough_for_as_many_folds_as_there_are_texts() -> None:
    fitted = fitted_on(*apart((4, 4), 16, 40.0))
    assert fitted.accuracy == 1.0
    assert fitted_on(*apart((4, 40), 16, 40.0)).accuracy == 1.0


def test_a_site_at_which_all_texts_are_alike_has_the_accuracy_of_a_guess() -> None:
    same = torch.ones(8, 16)
    fitted = fitted_on(same, same)
    assert fitted.accuracy == 0.5
    torch.testing.assert_close(fitted.regulator(same[None], ForwardPass(1, 8)), torch.full((1, 8, 1), 0.5))


def test_the_same_seed_gives_the_same_regulator_and_the_global_random_state_is_not_used() -> None:
    source, control = apart((20, 20), 16, 1.0)
    one = fitted_on(source, control, seed=3)
    np.random.seed(99)
    again = fitted_on(source, control, seed=3)
    assert one.accuracy == again.accuracy
    assert torch.equal(one.regulator.get_buffer("theta"), again.regulator.get_buffer("theta"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"components": 0}, r"components must be from 1 to 8 \(texts, dim\), got 0"),
        ({"components": 9}, "components must be from 1 to 8"),
        ({"inverse_penalty": 0.0}, "inverse_penalty must be > 0 and folds >= 2, got 0.0 and 5"),
        ({"folds": 1}, "folds >= 2, got 1.0 and 1"),
    ],
)
def test_settings_outside_their_ranges_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        fitted_on(torch.randn(4, 16), torch.randn(4, 16), **options)  # type: ignore


def test_projection_values_and_accuracy_are_those_of_the_reference() -> None:
    check_golden_regulator(dsas.Logistic, "logistic", tolerance=1e-2)
