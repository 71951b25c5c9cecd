"""Posterior against the golden numbers, scikit-learn's AUROC and scipy's normal densities."""

import numpy as np
import pytest
import torch
from makers import check_golden_regulator
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.posterior import auroc


@pytest.mark.parametrize("least", [0.75, 0.5])
def test_the_values_are_those_of_the_reference(least: float) -> None:
    check_golden_regulator(dsas.Posterior, f"posterior {least}")


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_auroc_of_every_neuron_is_that_of_scikit_learn_with_ties_too(levels: int) -> None:
    first, second = torch.randint(levels, (13, 6)).float() + 1, torch.randint(levels, (8, 6)).float()
    labels = np.repeat([1, 0], [13, 8])
    expected = [roc_auc_score(labels, torch.cat([first, second])[:, j].numpy()) for j in range(6)]
    np.testing.assert_allclose(auroc(first, second).numpy(), expected, rtol=1e-12)


def test_a_neuron_is_steered_exactly_where_the_sources_density_is_the_higher_one() -> None:
    source = torch.randn(40, 5) * torch.tensor([1.0, 2.0, 0.5, 1.0, 0.1]) + torch.tensor([2.0, 0.0, -3.0, 1.0, 30.0])
    target = torch.randn(30, 5) * torch.tensor([1.0, 0.7, 1.5, 1.0, 0.3]) + torch.tensor([0.0, 0.0, -1.0, 1.2, 30.2])
    regulator = dsas.Posterior.fit(source, target, target, least_auroc=0.5).regulator
    t = torch.randn(4, 200, 5) * 2 * source.std(0) + target.mean(0)
    moments = [(x.double().mean(0).numpy(), x.double().std(0).numpy()) for x in (source, target)]
    densities = [norm.logpdf(t.double().numpy(), *moment) for moment in moments]
    clear = np.abs(densities[0] - densities[1]) > 1e-2
    got = regulator(t, ForwardPass(4, 200)).numpy()
    assert got.shape == (4, 200, 5)
    assert clear.mean() > 0.95
    np.testing.assert_array_equal(got[clear], (densities[0] > densities[1])[clear])
    assert all(0.02 < share < 0.98 for share in got.mean((0, 1)))


def test_a_neuron_that_is_constant_in_source_or_target_is_never_steered() -> None:
    source, control, target = torch.randn(12, 4) + 3, torch.randn(9, 4), torch.randn(10, 4) - 1
    source[:, 0], target[:, 1] = 3.0, -1.0
    source[:, 2] = 3.0 + 1e-5 * torch.randn(12)
    regulator = dsas.Posterior.fit(source, control, target).regulator
    t = torch.cat([source[None], target[None], 100 * torch.randn(1, 20, 4)], dim=1)
    values = regulator(t, ForwardPass(1, t.shape[1]))
    assert not values[..., :3].any()
    assert values[..., 3].any()


def test_a_neuron_that_does_not_tell_source_from_control_is_never_steered_whatever_the_target() -> None:
    source, target = torch.randn(50, 2) + torch.tensor([0.0, 3.0]), torch.randn(50, 2) - 5
    control = torch.randn(50, 2)
    values = dsas.Posterior.fit(source, control, target).regulator(source[None], ForwardPass(1, 50))
    assert not values[..., 0].any()
    assert float(values[..., 1].mean()) > 0.9


def test_a_neuron_that_is_lower_in_the_source_tells_as_much_as_one_that_is_higher() -> None:
    source, control = torch.randn(30, 1), torch.randn(30, 1)
    up, down = (dsas.Posterior.fit(source + 3 * s, control, control - 2 * s).regulator for s in (1.0, -1.0))
    assert float(up(source[None] + 3, ForwardPass(1, 30)).mean()) > 0.9
    assert float(down(source[None] - 3, ForwardPass(1, 30)).mean()) > 0.9


@pytest.mark.parametrize("least", [0.49, 1.01, float("nan")])
def test_a_least_auroc_outside_its_range_is_refused(least: float) -> None:
    with pytest.raises(OptionError, match=r"least_auroc must lie in \[0.5, 1\], got"):
        dsas.Posterior.fit(*[torch.randn(4, 2)] * 3, least_auroc=least)
