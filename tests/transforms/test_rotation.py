"""Rotation against the golden numbers, and what a turn must keep."""

import math

import pytest
import torch
from makers import check_golden_transform
from torch.nn.functional import normalize

import dsas
from dsas.errors import OptionError


@pytest.mark.parametrize("turns", [1.0, 0.5])
def test_the_map_is_that_of_the_reference(turns: float) -> None:
    check_golden_transform(dsas.Rotation, f"rotation {turns}")


@pytest.mark.parametrize("turns", [1.0, -2.5, 17.0])
def test_the_norm_of_every_token_is_kept(turns: float) -> None:
    fitted = dsas.Rotation.fit(torch.randn(9, 6) + 1, torch.randn(7, 6) - 1, turns=turns)
    t = 5 * torch.randn(2, 3, 6)
    torch.testing.assert_close(fitted(t).norm(dim=-1), t.norm(dim=-1))


def test_the_direction_of_the_sources_mean_is_turned_onto_that_of_the_target() -> None:
    source, target = torch.randn(9, 6) + 1, 3 * torch.randn(7, 6) - 1
    mean = source.mean(0)
    turned = dsas.Rotation.fit(source, target)(mean.view(1, 1, 6))[0, 0]
    torch.testing.assert_close(turned, normalize(target.mean(0), dim=0) * mean.norm(), atol=1e-5, rtol=1e-5)


def test_an_angle_of_zero_is_the_identity_to_the_bit() -> None:
    t = torch.randn(2, 3, 6)
    assert torch.equal(dsas.Rotation.fit(torch.randn(9, 6), torch.randn(7, 6), turns=0.0)(t), t)


def test_what_lies_across_the_plane_is_left_alone() -> None:
    first, second = torch.eye(4)[:2]
    turned = dsas.Rotation(first, second, torch.tensor(math.pi / 2))(torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]))
    torch.testing.assert_close(turned, torch.tensor([[[-2.0, 1.0, 3.0, 4.0]]]))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e6])
def test_means_on_one_line_turn_by_nothing_or_by_half_a_turn_and_keep_the_norm(scale: float) -> None:
    source, t = scale * (torch.randn(9, 64) + 1), torch.randn(2, 3, 64)
    same = dsas.Rotation.fit(source, 3 * source)
    torch.testing.assert_close(same(t), t)
    for turns in (1.0, 0.5):
        opposite = dsas.Rotation.fit(source, -2 * source, turns=turns)
        torch.testing.assert_close(opposite(t).norm(dim=-1), t.norm(dim=-1))
    mean = normalize(source.mean(0), dim=0).view(1, 1, 64)
    torch.testing.assert_close(dsas.Rotation.fit(source, -2 * source)(mean), -mean)


def test_a_mean_without_a_direction_and_an_angle_that_is_none_are_refused() -> None:
    zero = torch.tensor([[1.0], [-1.0]] * 2)
    for sets in ((zero, zero + 1), (zero + 1, zero)):
        with pytest.raises(OptionError, match="needs two means that are not zero"):
            dsas.Rotation.fit(*sets)
    with pytest.raises(OptionError, match="turns must be finite, got nan"):
        dsas.Rotation.fit(zero + 1, zero + 1, turns=float("nan"))
