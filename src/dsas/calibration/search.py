"""Search: the end of the first interval of strengths that keeps a budget.

    up      start, 2 start, 4 start, ... until the budget breaks, or the limit is reached
    between the last that kept it (g) and the first that broke it (b): try sqrt(g b), until b <= 1.05 g

Damage need not grow with strength: a little steering can lower perplexity, and far beyond every budget it may fall
again. What is found is where the budget is first lost, as far as steps of a factor 2 can tell; a gap narrower than one
step can be stepped over. Every strength is rounded to 4 digits, so that what is stored is what was measured.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

TOLERANCE = 0.05


class Found(NamedTuple):
    """The largest strength that kept the budget (0: none did), and the least above it that broke it (None: none)."""

    strength: float
    broken: float | None


def largest_kept(
    keeps: Callable[[float], bool], *, start: float, limit: float, enough: Callable[[float], bool] = lambda _: False
) -> Found:
    """Return the end of the first interval from `start` to `limit` that keeps the budget, to a relative tolerance.

    keeps: whether a strength keeps it; asked once for each. enough: whether no larger one than this, which keeps it, is
    to be tried.
    """
    kept, broken, strength = 0.0, None, start
    while broken is None and kept < limit and not (kept and enough(kept)):
        if keeps(strength):
            kept, strength = strength, min(2 * strength, limit)
        else:
            broken = strength
    while kept and broken is not None and broken > (1 + TOLERANCE) * kept:
        middle = float(f"{math.sqrt(kept * broken):.4g}")
        if keeps(middle):
            kept = middle
        else:
            broken = middle
    return Found(kept, broken)
