"""Rectified: its scale on the source, its exact zeros, and the options it refuses."""

import pytest
import torch

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass


def values(regulator: dsas.Regulator, t: torch.Tensor) -> torch.Tensor:
    return regulator(t, ForwardPass(*t.shape[:2]))


def test_it_is_one_on_average_over_the_source_and_exactly_zero_far_off_the_concept() -> None:
    source, control = torch.randn(20, 6) + 1.5, torch.randn(20, 6) - 1.5
    fitted = dsas.Rectified.fit(source, control, control)
    assert fitted.accuracy == 1.0
    assert float(values(fitted.regulator, source.unsqueeze(0)).mean()) == pytest.approx(1.0, abs=1e-4)
    assert not values(fitted.regulator, 4 * control.mean(0).expand(1, 3, 6)).any()


def test_the_value_is_the_part_of_the_projection_above_zero() -> None:
    regulator = dsas.Rectified(torch.tensor([1.0, -2.0]), torch.tensor(0.5))
    t = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [3.0, 1.0]]])
    assert values(regulator, t).flatten().tolist() == [1.5, 0.0, 1.5]


def test_fewer_than_one_component_is_refused() -> None:
    with pytest.raises(OptionError, match="components must be >= 1, got 0"):
        dsas.Rectified.fit(torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3), components=0)
