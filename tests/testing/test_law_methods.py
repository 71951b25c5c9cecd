"""A method that breaks a law is told which one."""

import pytest
import torch
from lawless import (
    BareFit,
    Boasts,
    Counts,
    Detached,
    FirstRow,
    Forgets,
    Gate,
    GateDetached,
    Half,
    HalfPrecision,
    InPlace,
    LooksAround,
    NanAtZero,
    Narrow,
    Negative,
    OtherwiseOfMoments,
    Remembers,
    SeesPadding,
    WrongShape,
)

import dsas
from dsas.testing import LawBroken, check_regulator, check_transform


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (Half, None),
        (InPlace, 3),
        (LooksAround, 2),
        (Narrow, 3),
        (Detached, 7),
        (WrongShape, 3),
        (NanAtZero, 3),
        (Forgets, 5),
        (OtherwiseOfMoments, 6),
    ],
)
def test_a_transform_that_breaks_a_law_is_told_which(method: type[dsas.Transform], law: int | None) -> None:
    if law is None:
        check_transform(method)
        return
    with pytest.raises(LawBroken, match=rf"^law {law} \("):
        check_transform(method)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (Gate, None),
        (FirstRow, 2),
        (Counts, 2),
        (SeesPadding, 2),
        (Negative, 3),
        (HalfPrecision, 3),
        (GateDetached, 7),
        (Boasts, 6),
        (BareFit, 5),
        (Remembers, 3),
    ],
)
def test_a_regulator_that_breaks_a_law_is_told_which(method: type[dsas.Regulator], law: int | None) -> None:
    if law is None:
        check_regulator(method)
        return
    with pytest.raises(LawBroken, match=rf"^law {law} \("):
        check_regulator(method)


def test_checking_a_method_leaves_the_global_random_state_as_it_was() -> None:
    state = torch.random.get_rng_state()
    check_transform(dsas.Addition)
    check_regulator(dsas.Logistic)
    assert torch.equal(torch.random.get_rng_state(), state)
