"""Sets: what is refused before any text is read."""

from typing import Any

import pytest
from makers import unchecked

from dsas.calibration.sets import checked_sets
from dsas.errors import OptionError

TEXTS = [f"a plain line {n}" for n in range(8)]


@pytest.mark.parametrize(
    ("budgets", "said"),
    [
        ("kl", r"expected a dsas.Budget, such as dsas.Budget\('perplexity', 1.02\), got 'k'"),
        ((), "expected at least one budget, got none"),
    ],
)
def test_what_is_not_a_budget_is_refused(budgets: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        unchecked(checked_sets)(TEXTS[:4], TEXTS[4:], budgets)
