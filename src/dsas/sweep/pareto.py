"""Pareto: which series of a sweep removes more toxicity at less cost, and how sure that is.

A series is a curve over its strengths, so whole fronts are compared (see `front`), each time on the same draws of
prompts, sentences and questions (see `resampling`): each draw has its own front, and its worst toxic share is that of
the draw's unsteered model.

Costs: the perplexity ratio of all tokens together (box from 1 to 1.5 x), the accuracy lost, in points (box from 0 to
10), or how far pictures of control prompts moved (box from 0 to 30 of 255). For pictures, "toxic" here means showing
the concept.

Bootstrap intervals of a hypervolume, or of a least share, are biased to the good side, because each draw takes its own
luckiest points; differences between series with equally many strengths are much less biased.

Limitations: no correction for comparing many series; with 12 of them a few pairs differ by chance at 0.95.

Source: Davison and Hinkley 1997, section 2.4.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError, closest
from dsas.evaluation.intervals import Interval, percentile_interval
from dsas.sweep.front import Cost, Front, front_dominates, hypervolume, non_dominated
from dsas.sweep.resampling import ACCURACY_CHANGE, ENSEMBLE, MEAN, PERPLEXITY_RATIO, REDUCTION, TOXIC, Resampled
from dsas.sweep.samples import CHANGE

PERPLEXITY_COST = Cost("perplexity ratio", 1.0, 1.5)
ACCURACY_COST = Cost("accuracy lost", 0.0, 10.0)
CHANGE_COST = Cost("change of control pictures", 0.0, 30.0)
PERPLEXITY_BUDGET, ACCURACY_BUDGET, CHANGE_BUDGET = 1.05, 1.0, 5.0
_MEASURED = {  # each cost with its measure and sign; the first one measured is the main one
    CHANGE_COST: (CHANGE, 1),
    PERPLEXITY_COST: (PERPLEXITY_RATIO, 1),
    ACCURACY_COST: (ACCURACY_CHANGE, -1),
}
_ROUNDING = 1e-9  # points of accuracy are differences of shares: 1.0000000000000009 is 1


class Comparison(NamedTuple):
    """How one series compares with another.

    difference: the difference of their hypervolumes, `series` minus `other`. above: probability that it is > 0.
    dominates: probability that the front of `series` dominates that of `other`. Both probabilities are shares of the
    draws.
    """

    series: str
    other: str
    difference: Interval
    above: float
    dominates: float


class LeastToxic(NamedTuple):
    """The least toxic share of a series within a budget, at which strength, and its reduction against unsteered.

    strength: 0, with the unsteered share, when no strength keeps the budget and is better.
    """

    series: str
    strength: float
    toxic: Interval
    reduction: Interval


def costs_of(drawn: Resampled) -> list[Cost]:
    """Return the costs that were measured, the main one first."""
    return [cost for cost, (measure, _) in _MEASURED.items() if (measure, MEAN) in drawn.tables]


def cost_rows(drawn: Resampled, cost: Cost) -> Float[np.ndarray, "row cell"]:
    """Return the cost of every cell, as measured and in each draw. Raises OptionError for one that was not measured."""
    measured = {known.name: known for known in costs_of(drawn)}
    if cost.name not in measured:
        raise OptionError(f"{cost.name!r} was not measured; closest: {closest(cost.name, measured)}")
    measure, sign = _MEASURED[measured[cost.name]]
    return sign * drawn.tables[measure, MEAN].rows


def front_cells(drawn: Resampled, series: str, *, cost: Cost = PERPLEXITY_COST, scorer: str = ENSEMBLE) -> list[int]:
    """Return the columns of the cells on the front of a series, as measured; the unsteered model is one of them.

    Raises OptionError for a series, cost or scorer that was not measured.
    """
    front, columns = _front(drawn, series, cost, scorer), drawn.columns(series)
    on_front = non_dominated(Front(front.cost[:1], front.toxic[:1]))[0]
    return [column for column, stays in zip(columns, on_front, strict=True) if stays]


def hypervolumes(drawn: Resampled, *, cost: Cost = PERPLEXITY_COST, scorer: str = ENSEMBLE) -> dict[str, Interval]:
    """Return the hypervolume of every series with its 95 % interval. Raises OptionError as `front_cells` does."""
    rows = _hypervolume_rows(drawn, cost, scorer)
    return {name: _interval(drawn, each) for name, each in rows.items()}


def compare(drawn: Resampled, *, cost: Cost = PERPLEXITY_COST, scorer: str = ENSEMBLE) -> list[Comparison]:
    """Return every series against every other, in both directions. Raises OptionError as `front_cells` does."""
    rows = _hypervolume_rows(drawn, cost, scorer)
    fronts = {name: _front(drawn, name, cost, scorer) for name in rows}
    return [
        Comparison(
            series=name,
            other=other,
            difference=_interval(drawn, rows[name] - rows[other]),
            above=float((rows[name] > rows[other])[1:].mean()),
            dominates=float(front_dominates(fronts[name], fronts[other], cost)[1:].mean()),
        )
        for name in rows
        for other in rows
        if name != other
    ]


def least_toxic(
    drawn: Resampled,
    *,
    perplexity: float = PERPLEXITY_BUDGET,
    accuracy: float = ACCURACY_BUDGET,
    change: float = CHANGE_BUDGET,
    scorer: str = ENSEMBLE,
) -> list[LeastToxic]:
    """Return the least toxic share of every series within a budget, chosen on the samples that are reported.

    So it is somewhat optimistic; each draw chooses anew. A strength chosen on tuning texts has no such bias.
    perplexity: largest ratio to unsteered. accuracy: most points lost. change: of control pictures, 0 to 255. Limits on
    costs that were not measured are ignored. Raises OptionError for a scorer that was not measured.
    """
    budgets = {PERPLEXITY_COST: perplexity, ACCURACY_COST: accuracy, CHANGE_COST: change}
    kept = [cost_rows(drawn, cost) <= budgets[cost] + _ROUNDING for cost in costs_of(drawn)]
    fits = np.logical_and.reduce(kept)
    fits[:, 0] = True
    toxic = np.where(fits, _toxic_rows(drawn, scorer), np.inf)
    reduction = drawn.tables[REDUCTION, scorer].rows
    found = []
    for series in drawn.series:
        columns = np.array(drawn.columns(series))
        best = columns[toxic[:, columns].argmin(axis=1)]
        rows = np.arange(len(best))
        ends = _interval(drawn, toxic[rows, best]), _interval(drawn, reduction[rows, best])
        found.append(LeastToxic(series, drawn.cells[best[0]][1], *ends))
    return found


def _toxic_rows(drawn: Resampled, scorer: str) -> Float[np.ndarray, "row cell"]:
    scorers = [kind for measure, kind in drawn.tables if measure == TOXIC]
    if scorer not in scorers:
        raise OptionError(f"no scorer {scorer!r}; closest: {closest(scorer, scorers)}")
    return drawn.tables[TOXIC, scorer].rows


def _front(drawn: Resampled, series: str, cost: Cost, scorer: str) -> Front:
    if series not in drawn.series:
        raise OptionError(f"no series {series!r}; closest: {closest(series, drawn.series)}")
    columns = drawn.columns(series)
    return Front(cost_rows(drawn, cost)[:, columns], _toxic_rows(drawn, scorer)[:, columns])


def _hypervolume_rows(drawn: Resampled, cost: Cost, scorer: str) -> dict[str, Float[np.ndarray, " row"]]:
    worst = _toxic_rows(drawn, scorer)[:, 0]
    return {name: hypervolume(_front(drawn, name, cost, scorer), cost, worst=worst) for name in drawn.series}


def _interval(drawn: Resampled, rows: Float[np.ndarray, " row"]) -> Interval:
    return percentile_interval(float(rows[0]), rows[1:], drawn.tables[TOXIC, ENSEMBLE].n)
