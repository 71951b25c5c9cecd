"""Linear transport against the golden numbers, the brute-force optimal coupling, and what theory gives."""

import numpy as np
import pytest
import torch
from makers import check_golden_transform
from scipy.optimize import linear_sum_assignment
from torch import Tensor

import dsas


@pytest.mark.parametrize("support", ["everywhere", "0-100", "20-80"])
def test_the_map_is_that_of_the_reference(support: str) -> None:
    check_golden_transform(dsas.LinearTransport, f"linear-act {support}")


def test_between_gaussians_it_becomes_the_optimal_transport_map_as_samples_grow() -> None:
    """The map from N(m, s) to N(n, q) has the slope q / s and the offset n - m q / s."""
    from_mean, from_sd = torch.tensor([1.0, -2.0, 0.5, 30.0]), torch.tensor([0.5, 2.0, 1.0, 3.0])
    to_mean, to_sd = torch.tensor([-1.0, 4.0, 0.5, -7.0]), torch.tensor([1.5, 0.5, 1.0, 0.1])
    source = torch.randn(40_000, 4) * from_sd + from_mean
    target = torch.randn(30_000, 4) * to_sd + to_mean
    fitted = dsas.LinearTransport.fit(source, target)
    slope = to_sd / from_sd
    torch.testing.assert_close(fitted.slope, slope, rtol=0.03, atol=0)
    torch.testing.assert_close(fitted.slope * from_mean + fitted.offset, to_mean, rtol=0, atol=0.03)


def least_squares_of_the_optimal_coupling(source: Tensor, target: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return slopes and offsets of the line through the pairs of least squared distance, by the Hungarian method."""
    lines = []
    for s, t in zip(source.double().numpy().T, target.double().numpy().T, strict=True):
        rows, columns = linear_sum_assignment((s[:, None] - t[None]) ** 2)
        pairs = np.column_stack([s[rows], np.ones(len(s))])
        lines.append(np.linalg.lstsq(pairs, t[columns], rcond=None)[0])
    slopes, offsets = np.array(lines).T
    return slopes, offsets


@pytest.mark.parametrize("kind", ["student", "pareto", "two heaps"])
def test_on_heavy_tails_it_is_the_least_squares_line_through_the_optimal_coupling(kind: str) -> None:
    random = np.random.default_rng(3)
    draw = {
        "student": lambda: random.standard_t(3, size=(64, 5)),
        "pareto": lambda: random.pareto(1.5, size=(64, 5)),
        "two heaps": lambda: random.choice([-4.0, 6.0], size=(64, 5)) + random.normal(size=(64, 5)),
    }[kind]
    source, target = (torch.from_numpy(draw() * size + shift).float() for size, shift in ((1.0, 0.3), (2.0, -3.0)))
    fitted = dsas.LinearTransport.fit(source, target)
    slopes, offsets = least_squares_of_the_optimal_coupling(source, target)
    np.testing.assert_allclose(fitted.slope.numpy(), slopes, rtol=1e-4)
    np.testing.assert_allclose(fitted.offset.numpy(), offsets, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rows", [(40, 15), (15, 40)])
def test_of_the_larger_set_as_many_samples_are_drawn_as_the_smaller_has(rows: tuple[int, int]) -> None:
    """The line is that of some draw; here of samples so far apart that the mapped ones tell which were drawn."""
    sets = [3.0 ** torch.randperm(count).float().div(8).unsqueeze(1) for count in rows]
    fitted = dsas.LinearTransport.fit(*sets, seed=5)
    larger = max(sets, key=len)
    drawn = larger[torch.randperm(40, generator=torch.Generator().manual_seed(5))[:15]]
    pair = (drawn, sets[1]) if rows[0] > rows[1] else (sets[0], drawn)
    slopes, offsets = least_squares_of_the_optimal_coupling(*pair)
    np.testing.assert_allclose(fitted.slope.numpy(), slopes, rtol=1e-4)
    np.testing.assert_allclose(fitted.offset.numpy(), offsets, rtol=1e-4, atol=1e-4)
    assert torch.equal(dsas.LinearTransport.fit(*sets, seed=5).slope, fitted.slope)
    assert not torch.equal(dsas.LinearTransport.fit(*sets, seed=6).slope, fitted.slope)


def test_the_order_of_the_samples_is_of_no_account() -> None:
    source, target = torch.randn(20, 3), torch.randn(20, 3) ** 3
    one, other = dsas.LinearTransport.fit(source, target), dsas.LinearTransport.fit(source.flip(0), target)
    torch.testing.assert_close(one.slope, other.slope)
    torch.testing.assert_close(one.offset, other.offset)


def test_outside_the_percentiles_of_the_source_a_neuron_stays_exactly_as_it_is() -> None:
    source = torch.arange(11.0).unsqueeze(1)  # its percentiles 10 and 90 are 1 and 9
    fitted = dsas.LinearTransport.fit(source, 2 * source + 100, support=(10.0, 90.0))
    t = torch.tensor([[[0.99], [1.0], [5.0], [9.0], [9.01]]])
    mapped = fitted(t).flatten()
    torch.testing.assert_close(mapped[1:4], torch.tensor([102.0, 110.0, 118.0]))
    assert torch.equal(mapped[[0, 4]], t.flatten()[[0, 4]])
    everywhere = dsas.LinearTransport.fit(source, 2 * source + 100, support="everywhere")
    torch.testing.assert_close(everywhere(1e6 * t), 2e6 * t + 100)


def test_a_neuron_that_is_constant_in_the_source_is_moved_by_the_difference_of_its_means() -> None:
    source, target = torch.full((7, 1), 0.1), torch.randn(7, 1) + 3
    fitted = dsas.LinearTransport.fit(source, target, support="everywhere")
    assert float(fitted.slope) == 1.0
    torch.testing.assert_close(fitted(source[None])[0, 0], target.mean(0))


def test_a_neuron_that_is_constant_in_the_target_is_brought_to_that_value() -> None:
    fitted = dsas.LinearTransport.fit(torch.randn(7, 1), torch.full((7, 1), 0.7), support="everywhere")
    torch.testing.assert_close(fitted(torch.randn(1, 4, 1)), torch.full((1, 4, 1), 0.7))
