"""The search, on functions whose answer is known."""

import math
from collections.abc import Callable

import pytest

from dsas.calibration.search import TOLERANCE, largest_kept


def asked(keeps: Callable[[float], bool]) -> tuple[list[float], Callable[[float], bool]]:
    """Return a list that fills with the strengths asked about, and the function that fills it."""
    seen: list[float] = []

    def ask(strength: float) -> bool:
        seen.append(strength)
        return keeps(strength)

    return seen, ask


@pytest.mark.parametrize("truth", [0.005, 0.0071, 0.0999, 1.0, 7.3, 15.99])
def test_the_end_of_the_interval_is_between_what_kept_and_what_broke_and_both_are_within_five_per_cent(
    truth: float,
) -> None:
    seen, keeps = asked(lambda strength: strength <= truth)
    found = largest_kept(keeps, start=0.005, limit=16.0)
    assert found.broken is not None
    assert found.strength <= truth < found.broken <= (1 + TOLERANCE) * found.strength
    assert len(seen) == len(set(seen)) <= math.ceil(math.log2(truth / 0.005)) + 2 + 5
    assert seen[:2] == [0.005, 0.01]


def test_the_first_interval_counts_although_larger_strengths_keep_the_budget_again() -> None:
    found = largest_kept(lambda strength: strength < 0.3 or 3 < strength < 5, start=0.01, limit=16.0)
    assert 0.3 / 1.05 <= found.strength < 0.3


def test_a_gap_between_two_steps_is_stepped_over() -> None:
    """It is what the docstring admits: 0.5 and 1 keep the budget, and nothing between them is asked about."""
    found = largest_kept(lambda strength: not 0.6 < strength < 0.9 and strength < 2.5, start=0.5, limit=16.0)
    assert 2.5 / 1.05 <= found.strength < 2.5


def test_nothing_larger_is_tried_than_what_is_enough() -> None:
    seen, keeps = asked(lambda strength: True)
    assert largest_kept(keeps, start=0.25, limit=16.0, enough=lambda strength: strength >= 1) == (1.0, None)
    assert seen == [0.25, 0.5, 1.0]


def test_a_budget_that_never_breaks_ends_at_the_limit() -> None:
    seen, keeps = asked(lambda strength: True)
    assert largest_kept(keeps, start=1.0, limit=5.0) == (5.0, None)
    assert seen == [1.0, 2.0, 4.0, 5.0]


def test_a_budget_that_the_start_breaks_has_no_strength() -> None:
    seen, keeps = asked(lambda strength: False)
    assert largest_kept(keeps, start=1.0, limit=5.0) == (0.0, 1.0)
    assert seen == [1.0]
