"""Addition against the difference of means, taken by NumPy in float64."""

import numpy as np
import torch
from makers import check_golden_transform

import dsas


def test_vector_and_edit_are_those_of_the_reference() -> None:
    check_golden_transform(dsas.Addition, "caa")


def test_the_vector_is_the_mean_of_the_target_minus_that_of_the_source() -> None:
    source, target = torch.randn(7, 5), torch.randn(11, 5) + 2
    fitted = dsas.Addition.fit(source, target)
    expected = target.numpy().astype(np.float64).mean(0) - source.numpy().astype(np.float64).mean(0)
    np.testing.assert_allclose(fitted.vector.numpy(), expected, rtol=1e-6)
    assert fitted.vector.dtype == torch.float32
    t = torch.randn(2, 3, 5)
    np.testing.assert_allclose(fitted(t).numpy(), t.numpy() + expected, rtol=1e-5)


def test_a_small_difference_between_large_means_is_not_lost_in_their_sums() -> None:
    source, target = torch.full((1000, 1), 4096.0), torch.full((1000, 1), 4096.0)
    target[:3] += 1.0
    np.testing.assert_allclose(dsas.Addition.fit(source, target).vector.numpy(), [0.003], rtol=1e-6)


def test_the_edit_is_the_vector_at_every_token_whatever_the_token_is() -> None:
    vector = torch.randn(5)
    edit = dsas.Addition(vector).edit(torch.randn(2, 3, 5).bfloat16())
    assert torch.equal(edit, vector.expand(2, 3, 5))
