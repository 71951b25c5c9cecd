"""The terms of the loss against the float64 reference of tests/golden/training_objective.py, and by differences."""

import math

import numpy as np
import pytest
import torch

from dsas.training.terms import drift, goal, size, transport

# What the script prints.
EQUAL_TERM, UNEQUAL_TERM, DRIFT = 10.401636282779602, 1.5017052770788801, 3.131068916473332
GRID = torch.arange(18, dtype=torch.float64).reshape(6, 3)
SOURCE, EQUAL, UNEQUAL = GRID.sin(), 2 * (3 * GRID).cos() + 1, (7 * GRID[:4]).sin() - 0.5


def test_the_transport_term_of_equal_sizes_is_that_of_the_reference() -> None:
    assert float(transport([SOURCE], [goal(EQUAL, 6)], [1.0])) == pytest.approx(EQUAL_TERM, rel=1e-12)
    two = transport([SOURCE, SOURCE], [goal(EQUAL, 6), goal(SOURCE, 6)], [3.0, 1.0])
    assert float(two) == pytest.approx(EQUAL_TERM / 9 / 2, rel=1e-12)


def test_the_transport_term_of_unequal_sizes_differs_from_the_reference_by_what_no_source_changes() -> None:
    def left_out(source: torch.Tensor) -> float:
        return reference(source.numpy(), UNEQUAL.numpy()) - float(transport([source], [goal(UNEQUAL, 6)], [1.0]))

    assert reference(SOURCE.numpy(), UNEQUAL.numpy()) == pytest.approx(UNEQUAL_TERM, rel=1e-12)
    assert left_out(SOURCE) == pytest.approx(left_out(5 * SOURCE - 2), rel=1e-9)
    assert left_out(SOURCE) > 0.01


def reference(source: np.ndarray, target: np.ndarray) -> float:
    """Return n W2^2 by refining both samples to lcm(n, m) equal ones."""
    n, m = len(source), len(target)
    both = math.lcm(n, m)
    s, t = (np.repeat(np.sort(x, axis=0), both // len(x), axis=0) for x in (source, target))
    return float(n * ((s - t) ** 2).mean(0).mean())


def test_a_goal_of_the_targets_own_size_is_the_sorted_target_and_keeps_its_mean_at_any_other() -> None:
    assert torch.equal(goal(UNEQUAL, 4), UNEQUAL.sort(0).values)
    for count in (1, 3, 4, 6, 9):
        torch.testing.assert_close(goal(UNEQUAL, count).mean(0), UNEQUAL.mean(0))


def test_the_drift_is_that_of_the_reference_and_has_gradient_zero_where_nothing_moved() -> None:
    assert float(drift(SOURCE, EQUAL)) / 6 == pytest.approx(DRIFT, rel=1e-12)
    still = SOURCE.clone().requires_grad_()
    drift(still, SOURCE).backward()
    assert still.grad is not None
    assert torch.equal(still.grad, torch.zeros(6, 3, dtype=torch.float64))


def test_gradients_of_both_terms_are_those_of_finite_differences() -> None:
    source = SOURCE.clone().requires_grad_()
    goals = [goal(EQUAL, 6), goal(UNEQUAL, 6)]
    assert torch.autograd.gradcheck(lambda x: transport([x, 2 * x], goals, [1.0, 3.0]), source)
    assert torch.autograd.gradcheck(lambda x: drift(x, EQUAL), source)


def test_the_size_of_a_neuron_is_its_root_mean_square_and_never_nothing() -> None:
    target = torch.tensor([[3.0, 0.0, 1e-9], [4.0, 0.0, 1e-9]])
    square = (9 + 16) / 6
    torch.testing.assert_close(size(target), torch.tensor([12.5**0.5, 1e-3 * square**0.5, 1e-3 * square**0.5]))
    assert size(torch.zeros(2, 3)).min() > 0
