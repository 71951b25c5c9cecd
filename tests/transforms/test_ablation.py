"""Ablation against the golden numbers, and what erasing a direction must and must not do."""

import pytest
import torch
from makers import check_golden_transform, unchecked

import dsas
from dsas.errors import OptionError


@pytest.mark.parametrize("level", ["zero", "target"])
def test_the_map_is_that_of_the_reference(level: str) -> None:
    check_golden_transform(dsas.Ablation, f"ablation {level}")


@pytest.mark.parametrize("level", ["zero", "target"])
def test_ablating_twice_is_ablating_once(level: str) -> None:
    fitted = dsas.Ablation.fit(torch.randn(9, 6) + 1, torch.randn(7, 6), level=level)
    once = fitted(torch.randn(2, 3, 6))
    torch.testing.assert_close(fitted(once), once, atol=1e-5, rtol=1e-5)


def test_level_zero_leaves_nothing_along_the_direction_and_everything_across_it() -> None:
    fitted = dsas.Ablation.fit(torch.randn(9, 6) + 1, torch.randn(7, 6))
    t = torch.randn(2, 3, 6)
    torch.testing.assert_close(fitted(t) @ fitted.direction, torch.zeros(2, 3), atol=1e-5, rtol=0)
    across = t - (t @ fitted.direction).unsqueeze(-1) * fitted.direction
    torch.testing.assert_close(fitted(t), across)


def test_level_target_leaves_every_token_where_the_targets_mean_is_along_the_direction() -> None:
    source, target = torch.randn(9, 6) + 1, torch.randn(7, 6) - 2
    fitted = dsas.Ablation.fit(source, target, level="target")
    left = fitted(torch.randn(2, 3, 6)) @ fitted.direction
    torch.testing.assert_close(left, (target.mean(0) @ fitted.direction).expand(2, 3), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        fitted(source[None])[0].mean(0) @ fitted.direction, target.mean(0) @ fitted.direction, atol=1e-5, rtol=1e-5
    )


def test_the_direction_points_from_the_target_to_the_source_with_length_one() -> None:
    fitted = dsas.Ablation.fit(torch.tensor([[3.0, 4.0]] * 4), torch.zeros(4, 2))
    torch.testing.assert_close(fitted.direction, torch.tensor([0.6, 0.8]))


def test_another_level_is_refused() -> None:
    with pytest.raises(OptionError, match="level must be 'zero' or 'target', got 'source'"):
        unchecked(dsas.Ablation.fit)(dsas.Ablation, torch.randn(4, 2), torch.randn(4, 2), level="source")
