"""Gaussian transport against the golden numbers and the optimal transport between two Gaussians."""

import numpy as np
import pytest
import torch
from makers import check_golden_transform

import dsas


@pytest.mark.parametrize("support", ["everywhere", "0-100", "20-80"])
def test_the_map_is_that_of_the_reference(support: str) -> None:
    check_golden_transform(dsas.GaussianTransport, f"gaussian-act {support}")


def test_the_mapped_source_has_the_mean_and_the_standard_deviation_of_the_target() -> None:
    source, target = torch.randn(9, 4) * 3 + 5, torch.randn(14, 4) * torch.arange(1.0, 5.0) - 2
    mapped = dsas.GaussianTransport.fit(source, target)(source[None])[0]
    torch.testing.assert_close(mapped.mean(0), target.mean(0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mapped.std(0), target.std(0), atol=1e-5, rtol=1e-5)


def test_neurons_that_hardly_vary_in_either_set_stay_exactly_as_they_are() -> None:
    source, target = torch.randn(10, 5), torch.randn(10, 5) + 1
    source[:, 0], target[:, 1] = 0.3, 0.3
    exact = torch.tensor([1.0, -1.0] * 5) * np.sqrt(0.9)  # sample standard deviation 1
    source[:, 2], target[:, 3] = 1e-4 * exact, 0.9e-4 * exact
    source[:, 4] = 1.1e-4 * exact
    fitted = dsas.GaussianTransport.fit(source, target, support="everywhere", least_sd=1.00001e-4)
    t = torch.randn(2, 3, 5)
    assert torch.equal(fitted(t)[..., :4], t[..., :4])
    assert not torch.equal(fitted(t)[..., 4], t[..., 4])
    assert torch.equal(dsas.GaussianTransport.fit(source, target)(t)[..., :2], t[..., :2])


def test_at_the_default_a_standard_deviation_above_one_ten_thousandth_moves() -> None:
    steps = torch.tensor([[1.0], [-1.0]] * 5)
    for size, moves in ((0.9e-4, False), (1.1e-4, True)):
        fitted = dsas.GaussianTransport.fit(size * steps, steps + 1)
        assert bool(fitted.slope != 1) == moves


def test_outside_the_range_of_the_source_a_neuron_stays_as_it_is_and_its_ends_belong_to_it() -> None:
    source, target = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([[5.0], [7.0], [9.0]])
    fitted = dsas.GaussianTransport.fit(source, target)
    t = torch.tensor([[[-0.01], [0.0], [2.0], [2.01]]])
    torch.testing.assert_close(fitted(t).flatten(), torch.tensor([-0.01, 5.0, 9.0, 2.01]))
