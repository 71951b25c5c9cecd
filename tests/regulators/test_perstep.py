"""PerStep: which regulator answers at which denoising step, and schedules over denoising steps."""

import pytest
import torch

import dsas
from dsas.errors import OptionError, StateError
from dsas.model.forward_pass import Denoising, ForwardPass
from dsas.regulators.base import FittedRegulator


def at(number: int, total: int, batch: int = 1) -> ForwardPass:
    forward_pass = ForwardPass(batch, 3)
    forward_pass.denoising = Denoising(number, total, number)
    return forward_pass


def answers(regulator: dsas.Regulator, total: int) -> list[float]:
    return [float(regulator(torch.zeros(1, 3, 4), at(number, total))[0, 0, 0]) for number in range(total)]


@pytest.mark.parametrize(
    ("total", "expected"),
    [(3, [1, 2, 3]), (6, [1, 1, 2, 2, 3, 3]), (5, [1, 1, 2, 2, 3]), (2, [1, 2]), (1, [1])],
)
def test_the_schedule_is_divided_as_evenly_as_it_can_be(total: int, expected: list[float]) -> None:
    regulator = dsas.PerStep([dsas.Constant(1.0), dsas.Constant(2.0), dsas.Constant(3.0)])
    assert answers(regulator, total) == expected


def test_a_schedule_of_denoising_steps_steers_whole_pictures() -> None:
    assert answers(dsas.Schedule("denoising", 1, 3), 5) == [0, 1, 1, 0, 0]
    assert answers(dsas.Schedule("denoising", 2), 4) == [0, 0, 1, 1]
    assert dsas.Schedule("denoising")(torch.zeros(2, 3, 4), at(0, 1, 2)).tolist() == [[[1.0]] * 3] * 2


@pytest.mark.parametrize("regulator", [dsas.PerStep([dsas.Constant(1.0)]), dsas.Schedule("denoising")])
def test_outside_of_a_denoising_pass_nothing_is_answered(regulator: dsas.Regulator) -> None:
    with pytest.raises(StateError, match="called outside a denoising pass"):
        regulator(torch.zeros(1, 3, 4), ForwardPass(1, 3))


def test_each_step_is_fitted_on_its_own_samples_and_the_accuracy_is_the_mean() -> None:
    seen = []

    def of(accuracy: float | None):
        def fit(source: torch.Tensor, control: torch.Tensor, target: torch.Tensor) -> FittedRegulator:
            seen.append((source.tolist(), control.tolist(), target.tolist()))
            return FittedRegulator(dsas.Constant(float(source[0, 0])), accuracy)

        return fit

    source, control, target = torch.arange(4.0).view(4, 1), torch.arange(2.0).view(2, 1), torch.ones(6, 1)
    fitted = dsas.PerStep.fit(source, control, target, of=[of(0.5), of(0.75)])
    assert seen == [([[0.0], [1.0]], [[0.0]], [[1.0]] * 3), ([[2.0], [3.0]], [[1.0]], [[1.0]] * 3)]
    assert fitted.accuracy == 0.625
    assert answers(fitted.regulator, 2) == [0, 2]
    assert dsas.PerStep.fit(source, control, target, of=[of(None), of(0.75)]).accuracy == 0.75
    assert dsas.PerStep.fit(source, control, target, of=[of(None), of(None)]).accuracy is None


def test_what_makes_no_sense_is_refused() -> None:
    samples = torch.ones(5, 2)
    with pytest.raises(OptionError, match="one regulator per denoising step, got none"):
        dsas.PerStep([])
    for of in ([], [dsas.Constant.fit] * 2):
        with pytest.raises(OptionError, match="equally many samples for each of"):
            dsas.PerStep.fit(samples, samples, samples, of=of)
    with pytest.raises(OptionError, match=r"use dsas.Drawing\(per_step=True\)"):
        dsas.fitting.method_names.regulator_fit("logistic*per-step")
