"""A linear regulator of another package gets the fused step and a row of a server's table without further code."""

from typing import ClassVar, final

import pytest
import torch
from torch import Tensor

import dsas
from dsas.methods.affine_edit import Form
from dsas.methods.base import Facts
from dsas.methods.linear_boundary import Boundary
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator
from dsas.regulators.linear import LinearRegulator
from dsas.runtime.edit import Fused, General, way_of
from dsas.serving.rule_rows import row_of

DIM = 16


@final
class Soft(LinearRegulator):
    """The sigmoid of the projection on the difference of the means."""

    name: ClassVar[str] = "soft"
    facts: ClassVar[Facts] = Facts("sigmoid(d . t)", "-", "-", "2 d")
    form: ClassVar[Form] = "sigmoid"

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        difference = (source.mean(0) - control.mean(0)).double().numpy()
        return FittedRegulator(cls.beyond(Boundary(difference, 0.5), unit=2.0), None)


@final
class Hard(LinearRegulator):
    """The same, rectified."""

    name: ClassVar[str] = "hard"
    facts: ClassVar[Facts] = Facts("max(0, d . t)", "-", "-", "2 d")
    form: ClassVar[Form] = "relu"

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(source.mean(0) - control.mean(0), torch.tensor(0.5)), None)


def sets() -> list[Tensor]:
    return [torch.randn(6, DIM) + shift for shift in (0.5, -0.5, 0.0)]


def test_the_score_is_the_log_odds_of_the_boundary_over_the_unit() -> None:
    source, control, target = sets()
    soft, t = Soft.fit(source, control, target).regulator, torch.randn(2, 3, DIM)
    odds = (t @ (source.mean(0) - control.mean(0)) + 0.5) / 2
    torch.testing.assert_close(soft(t, ForwardPass(2, 3)), torch.sigmoid(odds).unsqueeze(-1))


@pytest.mark.parametrize(("kind", "way"), [(Soft, Fused), (Hard, General)])
def test_one_of_another_package_is_applied_and_served_by_its_form(
    kind: type[LinearRegulator], way: type[Fused | General]
) -> None:
    regulator, transform = kind.fit(*sets()).regulator, dsas.Addition(torch.randn(DIM))
    assert isinstance(regulator, LinearRegulator)
    taken = way_of(transform, regulator, torch.tensor(0.7), skip_sinks=False, detail=False)
    assert isinstance(taken, way)
    t = torch.randn(2, 3, DIM)
    general = General(transform, regulator, torch.tensor(0.7), False)
    torch.testing.assert_close(taken(t, None).t, general(t, None).t)
    (projection,) = row_of(dsas.Rule(dsas.Site("block"), transform, regulator)).projections
    assert projection.form == kind.form
    assert torch.equal(projection.theta, regulator.theta)
