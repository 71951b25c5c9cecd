"""Half-space against the golden numbers, and where its plane lies."""

from math import erf, sqrt

import pytest
import torch
from makers import check_golden_regulator, unchecked

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass


@pytest.mark.parametrize("place", ["origin", "midpoint"])
def test_plane_values_and_accuracy_are_those_of_the_reference(place: str) -> None:
    check_golden_regulator(dsas.HalfSpace, f"halfspace {place}")


def test_a_token_on_the_plane_is_not_steered_and_one_beyond_it_in_full() -> None:
    regulator = dsas.HalfSpace(torch.tensor([0.0, 1.0]), torch.tensor(2.0))
    t = torch.tensor([[[9.0, 1.99], [-9.0, 2.0], [0.0, 2.01]]])
    assert regulator(t, ForwardPass(1, 3)).flatten().tolist() == [0.0, 0.0, 1.0]


@pytest.mark.parametrize(("place", "offset"), [("origin", 0.0), ("midpoint", 4.0)])
def test_the_plane_runs_through_the_origin_or_half_way_between_the_means(place: str, offset: float) -> None:
    source, control = torch.tensor([[0.0, 5.0]] * 4), torch.tensor([[0.0, 3.0]] * 4)
    regulator = dsas.HalfSpace.fit(source, control, control, boundary=place).regulator
    assert regulator.get_buffer("direction").tolist() == [0.0, 1.0]
    assert float(regulator.get_buffer("offset")) == pytest.approx(offset)


def test_the_accuracy_at_the_midpoint_of_two_round_gaussians_is_what_theory_gives() -> None:
    """Means 2 apart at unit variance, far from the origin: Phi(1) at the midpoint, and a guess through the origin."""
    shift = torch.tensor([0.0, 2.0])
    source, control = torch.randn(1000, 2) + 50 + shift, torch.randn(1000, 2) + 50
    midpoint = dsas.HalfSpace.fit(source, control, control, boundary="midpoint")
    assert midpoint.accuracy == pytest.approx(0.5 * (1 + erf(1 / sqrt(2))), abs=0.03)
    assert dsas.HalfSpace.fit(source, control, control).accuracy == pytest.approx(0.5, abs=0.01)


def test_another_place_is_refused() -> None:
    sets = [torch.randn(4, 2)] * 3
    with pytest.raises(OptionError, match="boundary must be 'origin' or 'midpoint', got 'middle'"):
        unchecked(dsas.HalfSpace.fit)(dsas.HalfSpace, *sets, boundary="middle")
