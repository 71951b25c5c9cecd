"""The proximal step against its definition: the minimiser of tau R(v) + |v - x|^2 / 2."""

import math

import pytest
import torch

from dsas.training.proximal import SHARE, shrink, shrink_line_


def penalised(v: torch.Tensor, x: torch.Tensor, tau: float) -> float:
    penalty = SHARE * v.abs().sum() + (1 - SHARE) * math.sqrt(len(v)) * v.norm()
    return float(tau * penalty + 0.5 * (v - x).square().sum())


@pytest.mark.parametrize("tau", [0.01, 0.3, 1.0])
def test_no_neighbour_of_what_it_returns_has_a_lower_penalised_distance(tau: float) -> None:
    x = torch.randn(12, dtype=torch.float64)
    found = shrink(x, tau)
    least = penalised(found, x, tau)
    for scale in (1e-1, 1e-3):
        for direction in torch.randn(200, 12, dtype=torch.float64):
            assert penalised(found + scale * direction, x, tau) > least
            assert penalised(found + scale * direction * (found != 0), x, tau) >= least


def test_small_numbers_become_exactly_zero_large_ones_shrink_and_a_weak_group_vanishes_whole() -> None:
    x = torch.tensor([3.0, -0.5, 0.02, -2.0])
    kept = shrink(x, 0.1, share=1.0)
    torch.testing.assert_close(kept, torch.tensor([2.9, -0.4, 0.0, -1.9]))
    assert kept[2] == 0
    assert torch.equal(shrink(x, 10.0, share=0.0), torch.zeros(4))
    assert torch.equal(shrink(torch.zeros(4), 0.1), torch.zeros(4))
    assert torch.equal(shrink(x, 0.0), x)


def test_a_line_shrinks_towards_the_identity() -> None:
    slope, offset = torch.tensor([1.001, 3.0]).requires_grad_(), torch.tensor([-0.001, 20.0]).requires_grad_()
    shrink_line_(slope, offset, torch.tensor([1.0, 10.0]), 0.05)
    assert slope[0] == 1
    assert offset[0] == 0
    assert 2.8 < slope[1].item() < 3
    assert 18 < offset[1].item() < 20
