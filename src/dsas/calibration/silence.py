"""Silence: tuning texts that a Steering leaves alone, so that they cannot tell how strong it may be.

    silent  =  mean regulator value < 0.01   and   |damage(s)| <= allowed (s / limit)^2   for every budget

over all tokens and steered sites, at a strength s >= 1. Damage grows with the square of a small strength, so what is
below that line would keep the budget up to the limit, whatever the Steering does where it acts. Only texts that the
library itself reads are looked at: a budget with a `measure` of its own is of texts that only it knows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dsas.calibration.budget import NONE, Budget
from dsas.evaluation.firing import fires_on
from dsas.steering.steering import Steering

FROM = 1.0  # the strength from which it is asked
SILENT = 0.01


def hardly_felt(budgets: Sequence[Budget], spent: Sequence[float], strength: float, limit: float) -> bool:
    """Return whether the damage at a strength is so small that no strength up to `limit` would break a budget."""
    share = (strength / limit) ** 2
    return strength >= FROM and all(
        budget.measure is None and abs(damage - NONE[budget.damage]) <= (budget.most - NONE[budget.damage]) * share
        for budget, damage in zip(budgets, spent, strict=True)
    )


def silence_on(model: nn.Module, tokenizer: Any, steering: Steering, texts: Mapping[str, list[Any]]) -> float | None:
    """Return the mean regulator value on all texts where it is below `SILENT`, else None."""
    kinds = fires_on(model, tokenizer, steering, texts, progress=False).kinds
    value = sum(kind.value.mean * kind.tokens for kind in kinds) / sum(kind.tokens for kind in kinds)
    return value if value < SILENT else None
