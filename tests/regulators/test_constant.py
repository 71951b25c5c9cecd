"""Constant: the same value for every token, nothing learned."""

from typing import Any

import pytest
import torch
from makers import check_golden_regulator, unchecked

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass


@pytest.mark.parametrize("value", [0.0, 0.25, 1.0, 3.0])
def test_every_token_gets_the_value_in_float32(value: float) -> None:
    got = dsas.Constant(value)(torch.randn(2, 3, 5).half(), ForwardPass(2, 3))
    assert torch.equal(got, torch.full((2, 3, 1), value))


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf"), "1"])
def test_a_value_that_no_regulator_may_have_is_refused(value: Any) -> None:
    with pytest.raises(OptionError, match="expected a constant regulator of a finite value >= 0, got"):
        unchecked(dsas.Constant.__init__)(dsas.Constant.__new__(dsas.Constant), value)


def test_fitting_gives_one_and_measures_nothing() -> None:
    fitted = dsas.Constant.fit(torch.randn(4, 2), torch.randn(4, 2), torch.randn(4, 2))
    assert (repr(fitted.regulator), fitted.accuracy) == ("Constant(value=1.0)", None)


def test_the_value_is_that_of_the_reference() -> None:
    check_golden_regulator(dsas.Constant, "constant")
