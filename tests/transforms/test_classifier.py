"""Classifier addition against the golden numbers, and what its direction and length must be."""

import numpy as np
import pytest
import torch
from makers import check_golden_transform

import dsas


def test_the_addition_is_that_of_the_reference() -> None:
    check_golden_transform(dsas.ClassifierAddition, "iti", tolerance=1e-2)


@pytest.mark.parametrize("rows", [(30, 50), (6, 4)])  # more samples than dimensions, and fewer
def test_the_length_is_the_spread_of_all_samples_along_the_unit_normal(rows: tuple[int, int]) -> None:
    source, target = torch.randn(rows[0], 12) + 1, torch.randn(rows[1], 12) - 1
    vector = dsas.ClassifierAddition.fit(source, target).vector.double().numpy()
    normal = vector / np.linalg.norm(vector)
    projections = np.concatenate([source, target]) @ normal
    assert np.linalg.norm(vector) == pytest.approx(np.std(projections), rel=1e-5)


def test_between_two_round_clouds_the_normal_points_from_the_source_to_the_target() -> None:
    way = torch.nn.functional.normalize(torch.randn(8), dim=0)
    source, target = torch.randn(4000, 8), torch.randn(4000, 8) + 2 * way
    vector = dsas.ClassifierAddition.fit(source, target).vector
    assert float(vector @ way / vector.norm()) > 0.99
    assert float(vector.norm()) == pytest.approx(2**0.5, rel=0.03)  # variance 1 within, and 1 between the sets


def test_the_normal_is_that_of_a_boundary_and_not_the_difference_of_means() -> None:
    """In a sheared cloud the best boundary is at an angle to the difference of means: inverse covariance times it."""
    shear = torch.tensor([[1.0, 0.9], [0.0, 0.4]])
    source, target = torch.randn(4000, 2) @ shear, torch.randn(4000, 2) @ shear + torch.tensor([1.0, 0.0])
    vector = dsas.ClassifierAddition.fit(source, target).vector
    best = torch.linalg.solve(shear.T @ shear, torch.tensor([1.0, 0.0]))
    assert float(vector @ best / vector.norm() / best.norm()) > 0.99
    assert float(vector[0] / vector.norm()) < 0.8


def test_the_same_sets_add_nothing() -> None:
    same = torch.ones(8, 4)
    assert torch.equal(dsas.ClassifierAddition.fit(same, same).vector, torch.zeros(4))
