"""Threads that apply and remove Steerings at once, by a few rounds of the campaign of races."""

from collections import Counter
from collections.abc import Callable

import pytest
from campaigns import races


@pytest.mark.parametrize("campaign", [races.on_one_model, races.joined_and_parted, races.on_a_model_each])
def test_threads_that_steer_at_once_get_their_own_steering_and_leave_no_hook(
    campaign: Callable[[int], Counter[str]],
) -> None:
    ends = campaign(20)
    assert {what for what in ends if "WRONG" in what} == set()
    assert ends["right"] == 20 * races.THREADS


@pytest.mark.compile
def test_steering_drops_no_compiled_code_of_an_unrelated_module_that_runs_in_another_thread() -> None:
    ends = races.beside_compiled_code(20)
    assert {what for what in ends if "WRONG" in what} == set()
