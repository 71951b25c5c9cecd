"""Intervals: how far a measured mean or ratio may lie from the true one, by the bootstrap over prompts.

Several continuations of one prompt resemble each other, so whole prompts are resampled, with replacement, together with
all their seeds. Low and high are the 2.5 % and 97.5 % points of the statistic over the draws.

A mean of values that are all equal gets an interval of no width: with no toxic text among n prompts, 3/n is a better
upper bound ("rule of three").

Limitations: no bias correction, no studentised intervals.

Source: Efron 1979; Davison and Hinkley 1997, sections 2.4 and 3.8.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dsas.errors import OptionError

_LEVELS = (0.025, 0.975)


class Interval(NamedTuple):
    """A statistic, its 95 % interval, and the number of prompts it rests on."""

    mean: float
    low: float
    high: float
    n: int


def bootstrap(
    values: Float[np.ndarray, "prompt seed"] | Bool[np.ndarray, "prompt seed"], *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean of `values` (numbers, or flags for a share) with its interval.

    Raises OptionError when there are no prompts or seeds, a value is not finite, or `resamples` < 1.
    """
    (means,) = _prompt_means(values)
    draws = draw_counts(len(means), resamples=resamples, seed=seed) @ means / len(means)
    return percentile_interval(float(means.mean()), draws, len(means))


def bootstrap_ratio(
    above: Float[np.ndarray, "prompt seed"] | Bool[np.ndarray, "prompt seed"],
    below: Float[np.ndarray, "prompt _"] | Bool[np.ndarray, "prompt _"],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return mean(above) / mean(below) with its interval, for two measurements of the same prompts in one order.

    The numbers of seeds may differ. A draw whose denominator is 0 counts as infinite.
    Raises OptionError when mean(below) is 0 or the numbers of prompts differ, and where `bootstrap` does.
    """
    tops, bottoms = _prompt_means(above, below)
    if bottoms.mean() == 0:
        raise OptionError("expected a denominator whose mean is not 0, got 0: report the difference instead")
    weights = draw_counts(len(tops), resamples=resamples, seed=seed)
    top, bottom = weights @ tops, weights @ bottoms
    draws = np.divide(top, bottom, out=np.full(resamples, np.inf), where=bottom != 0)
    return percentile_interval(float(tops.mean() / bottoms.mean()), draws, len(tops))


def percentile_interval(measured: float, draws: Float[np.ndarray, " draw"], n: int) -> Interval:
    """Return a statistic as measured on `n` prompts, with the interval that its draws give; draws may be infinite."""
    low, high = np.quantile(draws, _LEVELS, method="inverted_cdf")
    return Interval(measured, float(low), float(high), n)


def draw_counts(items: int, *, resamples: int, seed: int | Sequence[int]) -> Float[np.ndarray, "draw item"]:
    """Return how often each item is drawn in each resample, which draws as many items as there are.

    Raises OptionError for `resamples` < 1.
    """
    if resamples < 1:
        raise OptionError(f"expected resamples >= 1, got {resamples}")
    even = np.full(items, 1 / items)
    return np.random.default_rng(seed).multinomial(items, even, size=resamples).astype(np.float64)


def bootstrap_groups(
    statistic: Callable[[list[np.ndarray]], Float[np.ndarray, " draw"]],
    sizes: Sequence[int],
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return a statistic of several groups of prompts with its interval; each group is resampled separately.

    statistic: takes for each group how often each of its prompts is drawn, (draw, prompt), and gives one value per
    draw. sizes: prompts in each group. Raises OptionError when a value is not finite or `resamples` < 1.
    """
    (mean,) = statistic([np.ones((1, size)) for size in sizes])
    draws = statistic(
        [draw_counts(size, resamples=resamples, seed=[seed, number]) for number, size in enumerate(sizes)]
    )
    if not (np.isfinite(mean) and np.isfinite(draws).all()):
        raise OptionError(f"expected a finite statistic in every draw, got {mean} and draws that are not finite")
    return percentile_interval(float(mean), draws, sum(sizes))


def _prompt_means(*measured: np.ndarray) -> list[Float[np.ndarray, " prompt"]]:
    for values in measured:
        if values.size == 0 or not np.isfinite(values).all():
            raise OptionError(f"expected finite values (prompt, seed), got shape {values.shape} with gaps or nothing")
        if len(values) != len(measured[0]):
            raise OptionError(f"expected the same prompts on both sides, got {len(measured[0])} and {len(values)}")
    return [values.astype(np.float64).mean(axis=1) for values in measured]
