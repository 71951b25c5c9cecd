"""Rounding: how a report shows a number with its 95 % interval."""

import math

from dsas.evaluation.intervals import Interval

_NO_BREAK = "\N{NO-BREAK SPACE}"


def percent(interval: Interval) -> str:
    """Return a share as percentages with its interval."""
    low, high = (_short(100 * end, 1) for end in interval[1:3])
    return f"{100 * interval.mean:.1f}{_NO_BREAK}% [{low},{_NO_BREAK}{high}]"


def plain(interval: Interval | None, digits: int = 3) -> str:
    """Return a number with its interval, or a dash when it was not measured."""
    if interval is None or math.isnan(interval.mean):
        return "–"
    mean, low, high = (_short(end, digits) for end in interval[:3])
    return f"{mean} [{low},{_NO_BREAK}{high}]"


def _short(value: float, digits: int) -> str:
    text = f"{value:.{digits}f}".replace("inf", "∞")
    return text.removeprefix("-") if float(f"{value:.{digits}f}") == 0 else text
