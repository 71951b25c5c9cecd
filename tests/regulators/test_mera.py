"""MERA against the golden numbers and the closed form of its step to the boundary."""

import math

import pytest
import torch
from makers import check_golden_regulator, close_to
from torch import Tensor

import dsas
from dsas.errors import OptionError
from dsas.methods.linear_boundary import Labelled, separate
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator
from dsas.transforms.affine import steer

DIM = 8


@pytest.fixture
def sets() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(20, DIM) + 1, torch.randn(16, DIM), torch.randn(12, DIM) - 0.5


def probe_of(source: Tensor, control: Tensor) -> tuple[Tensor, float]:
    boundary = separate(Labelled.of(source, control), components=5)
    return torch.from_numpy(boundary.theta).float(), boundary.bias


@pytest.mark.parametrize("alpha", [0.5, 0.3])
def test_plane_and_values_are_those_of_the_reference(alpha: float) -> None:
    check_golden_regulator(dsas.Mera, f"mera {alpha}", tolerance=1e-2)


@pytest.mark.parametrize("alpha", [0.3, 0.5, 0.9])
def test_along_the_probe_the_result_is_the_closed_form_least_step_to_the_boundary(
    sets: tuple[Tensor, Tensor, Tensor], alpha: float
) -> None:
    """t - w max(0, w . t + b - logit(alpha)) / |w|^2 is the nearest point at which the probe is no surer than alpha."""
    source, control, target = sets
    w, b = probe_of(source, control)
    reach = w @ (source.mean(0) - target.mean(0))
    regulator = dsas.Mera.fit(*sets, alpha=alpha).regulator
    t = 2 * torch.randn(3, 40, DIM)
    moved = steer(t, regulator(t, ForwardPass(3, 40)), dsas.Addition(-reach * w / w.square().sum()))
    beyond = (t @ w + b - math.log(alpha / (1 - alpha))).clamp(min=0).unsqueeze(-1)
    close_to(moved, t - beyond * w / w.square().sum(), "moved", 1e-4)
    certainty = torch.sigmoid(moved @ w + b)
    assert float(certainty.max()) == pytest.approx(alpha, abs=1e-4)
    below = (beyond == 0).squeeze(-1)
    assert 0 < int(below.sum()) < 120
    assert torch.equal(moved[below], t[below])


def test_with_the_difference_of_means_a_token_beyond_the_boundary_lands_on_it(
    sets: tuple[Tensor, Tensor, Tensor],
) -> None:
    source, control, target = sets
    w, b = probe_of(source, control)
    regulator = dsas.Mera.fit(*sets).regulator
    t = 2 * torch.randn(3, 40, DIM)
    odds = t @ w + b
    moved = steer(t, regulator(t, ForwardPass(3, 40)), dsas.Addition.fit(source, target))
    torch.testing.assert_close(moved @ w + b, odds.clamp(max=0), atol=1e-4, rtol=1e-4)
    half = steer(t, 0.5 * regulator(t, ForwardPass(3, 40)), dsas.Addition.fit(source, target))
    torch.testing.assert_close(half @ w + b, torch.where(odds > 0, odds / 2, odds), atol=1e-4, rtol=1e-4)


def test_where_no_step_leads_back_nothing_is_steered_and_the_site_counts_as_useless() -> None:
    source, control = torch.randn(20, DIM) + 1, torch.randn(16, DIM)
    for target in (source, source + 1):  # a reach of 0, and one the wrong way
        fitted = dsas.Mera.fit(source, control, target)
        assert fitted.accuracy == 0.0
        assert torch.equal(fitted.regulator(9 * torch.randn(2, 5, DIM), ForwardPass(2, 5)), torch.zeros(2, 5, 1))


def test_the_accuracy_is_that_of_the_probe_on_samples_it_was_not_fitted_on(sets: tuple[Tensor, Tensor, Tensor]) -> None:
    fitted: FittedRegulator = dsas.Mera.fit(*sets)
    assert fitted.accuracy == dsas.Logistic.fit(*sets).accuracy
    assert fitted.accuracy == dsas.Mera.fit(*sets, alpha=0.9).accuracy


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 1.0}, {"components": 0}])
def test_settings_outside_their_ranges_are_refused(
    sets: tuple[Tensor, Tensor, Tensor], options: dict[str, float]
) -> None:
    with pytest.raises(OptionError, match="alpha must lie between 0 and 1 and components be >= 1, got"):
        dsas.Mera.fit(*sets, **options)  # type: ignore
