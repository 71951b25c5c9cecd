"""Moments: those of parts, joined, are those of the whole."""

import numpy as np
import pytest
import torch

from dsas.methods.moments import Moments


@pytest.mark.parametrize("sizes", [(1, 1, 7), (40, 2, 1), (3, 300)])
@pytest.mark.parametrize("far", [0.0, 1e6])
def test_joined_moments_are_those_of_all_samples_at_once_however_far_from_zero(
    sizes: tuple[int, ...], far: float
) -> None:
    samples = torch.randn(sum(sizes), 5, dtype=torch.float64) * torch.tensor([1.0, 0.0, 1e-3, 1e3, 1.0]) + far
    parts = [Moments.of(part) for part in samples.split(list(sizes))]
    found = parts[0]
    for part in parts[1:]:
        found = found.joined(part)
    x = samples.numpy()
    assert found.size == len(x)
    np.testing.assert_allclose(found.mean.numpy(), x.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.sd.numpy(), x.std(0, ddof=1), rtol=1e-6, atol=1e-12)
    assert np.array_equal(found.low.numpy(), x.min(0))
    assert np.array_equal(found.high.numpy(), x.max(0))


def test_the_moments_of_one_part_are_to_the_bit_what_torch_says_of_its_samples() -> None:
    samples = torch.randn(50, 7)
    found, wide = Moments.of(samples), samples.double()
    assert torch.equal(found.mean, wide.mean(0))
    assert torch.equal(found.sd, wide.std(0))
