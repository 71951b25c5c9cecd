"""Estimates: every figure of a sweep with its interval, as rows for tables and as CSV files.

`table.csv`, and `table.jsonl` beside it, is tidy: a line for each series, strength, measure and kind. `summary.csv` has
a line for each series at the strength chosen on tuning texts, with columns "measure kind", "... low" and "... high".
Shares are in [0, 1], accuracy in points; an empty field was not measured.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dsas.errors import TextsError, closest
from dsas.evaluation.fluency import distinct_2
from dsas.evaluation.intervals import Interval
from dsas.evaluation.loss_curve import DAMAGE
from dsas.evaluation.selectivity import Selectivity
from dsas.files.json_values import JsonObject
from dsas.files.tidy_tables import csv_text
from dsas.reports.loss_curves import selectivity_line
from dsas.reports.rounding import percent, plain
from dsas.reports.wording import DISTINCT, OF_PICTURES, OF_TEXTS, Wording
from dsas.sweep.curves import CURVES, read_curves
from dsas.sweep.pareto import Comparison, LeastToxic, compare, costs_of, hypervolumes, least_toxic
from dsas.sweep.plan import Plan, SeriesPlan, read_plan
from dsas.sweep.resampling import ALL, TOXIC, Resampled, resample
from dsas.sweep.samples import UNSTEERED, Samples, read_samples

SAMPLES, PLAN = "samples.jsonl", "sweep.json"
_ENDS = ("", " low", " high")

Measures = dict[tuple[str, str], Interval]


class Estimates(NamedTuple):
    """All figures of a sweep.

    cells: for each (series, strength) the measures by name and kind. hypervolumes and comparisons: by name of the cost,
    of those that were measured. least_toxic: by series. prompts and seeds: how many. wording: terms of the subject.
    selectivity: by series, where it was measured.
    """

    cells: dict[tuple[str, float], Measures]
    hypervolumes: dict[str, dict[str, Interval]]
    comparisons: dict[str, list[Comparison]]
    least_toxic: dict[str, LeastToxic]
    prompts: int
    seeds: int
    wording: Wording = OF_TEXTS
    selectivity: Mapping[str, Selectivity] = {}

    def rows(self) -> list[JsonObject]:
        """Return one flat row per cell: every measure with its 95 % interval, JSON-ready."""
        return [
            {
                "series": series,
                "strength": strength,
                **{f"{measure} {kind}": interval._asdict() for (measure, kind), interval in measures.items()},
            }
            for (series, strength), measures in self.cells.items()
        ]


class Sweep(NamedTuple):
    """The plan of a sweep, its samples, and every figure computed from them."""

    plan: Plan
    samples: Samples
    found: Estimates


def read_sweep(folder: str | Path, *, resamples: int = 2000, seed: int = 0) -> Sweep:
    """Read the files of a sweep and estimate its figures; resamples and seed are those of the bootstrap.

    Raises TextsError for files that are not a sweep's or do not belong together.
    """
    folder = Path(folder)
    plan, samples, curves = read_plan(folder / PLAN), read_samples(folder / SAMPLES), read_curves(folder / CURVES)
    _check(plan, [*(cell.series for cell in samples.cells[1:]), *curves.against], samples.prompts, folder)
    drawn = resample(samples, resamples=resamples, seed=seed)
    found = estimate(samples, drawn, least_toxic(drawn))
    return Sweep(plan, samples, found._replace(selectivity=curves.selectivities(resamples=resamples, seed=seed)))


def estimate(samples: Samples, drawn: Resampled, least_toxic: Sequence[LeastToxic]) -> Estimates:
    """Return every figure of a sweep from its samples and their bootstrap draws."""
    cells: dict[tuple[str, float], Measures] = {}
    for number, cell in enumerate(samples.cells):
        measures = {name: table.interval(number) for name, table in drawn.tables.items()}
        if len(samples.prompts) > 1 and not samples.of_pictures:
            measures[DISTINCT, ALL] = distinct_2(cell.texts)
        cells[cell.series, cell.strength] = measures
    costs = costs_of(drawn)
    return Estimates(
        cells=cells,
        hypervolumes={cost.name: hypervolumes(drawn, cost=cost) for cost in costs},
        comparisons={cost.name: compare(drawn, cost=cost) for cost in costs},
        least_toxic={each.series: each for each in least_toxic},
        prompts=len(samples.prompts),
        seeds=len(samples.seeds),
        wording=OF_PICTURES if samples.of_pictures else OF_TEXTS,
    )


def _check(plan: Plan, measured: Sequence[str], prompts: Sequence[int], folder: Path) -> None:
    planned = {each.name for each in plan.series}
    for series in measured:
        if series not in planned:
            raise TextsError(f"{folder / PLAN}: no series {series!r}; closest: {closest(series, planned)}")
    if not 0 <= min(prompts) <= max(prompts) < len(plan.prompts):
        ends = f"{min(prompts)} to {max(prompts)}"
        raise TextsError(f"{folder / PLAN} has {len(plan.prompts)} prompts, the samples are of prompts {ends}")


def chosen_cells(plan: Plan, found: Estimates) -> dict[str, tuple[str, float]]:
    """Return the cell of every series at its chosen strength, unsteered first; those not measured are left out."""
    cells = {UNSTEERED: (UNSTEERED, 0.0)}
    cells |= {each.name: (each.name, each.chosen) for each in plan.series if each.chosen is not None}
    return {name: cell for name, cell in cells.items() if cell in found.cells}


def summary(found: Estimates, chosen: Mapping[str, float | None]) -> list[str]:
    """Return the headline figures as lines for a terminal: the unsteered model, and each series at its strength."""
    lines = []
    for series, strength in {UNSTEERED: 0.0, **chosen}.items():
        if strength is None:
            lines.append(f"{series}: no strength on the grid keeps the budget")
        else:
            measures, (cost, _) = found.cells[series, strength], found.wording.measure
            shares = [f"{kind} {percent(one)}" for (measure, kind), one in measures.items() if measure == TOXIC]
            costs = [f"{kind} {plain(one)}" for (measure, kind), one in measures.items() if measure == cost]
            lines += [f"{series} at strength {strength:g}", f"  {found.wording.goal}: {', '.join(shares)}"]
            lines.append(f"  {cost}: {', '.join(costs)}")
        if series in found.selectivity:  # they have strengths of their own
            lines.append(f"  selectivity: {selectivity_line(found.selectivity[series])}")
    return lines


def table_rows(found: Estimates) -> list[JsonObject]:
    """Return the rows of table.csv and table.jsonl: one per cell, measure and kind."""
    return [
        {
            "series": series,
            "strength": strength,
            "measure": _measure_name(measure, found),
            "kind": kind,
            **interval._asdict(),
        }
        for (series, strength), measures in found.cells.items()
        for (measure, kind), interval in measures.items()
    ]


def summary_csv(plan: Plan, found: Estimates) -> str:
    """Return summary.csv; a series without chosen or measured strength has its name and hypervolumes only."""
    chosen, rows = chosen_cells(plan, found), []
    names, goal = list(found.cells[UNSTEERED, 0.0]), found.wording.goal
    for series, transform, regulator, strength in (SeriesPlan(UNSTEERED, "", "", 0.0), *plan.series):
        row: JsonObject = {"series": series, "transform": transform, "regulator": regulator}
        row["chosen strength"] = strength
        measures = found.cells[chosen[series]] if series in chosen else {}
        for name in names:
            row |= _columns(f"{_measure_name(name[0], found)} {name[1]}", measures.get(name))
        for cost, by_series in found.hypervolumes.items():
            row |= _columns(f"hypervolume over {cost}", by_series.get(series))
        selective = found.selectivity.get(series)
        row |= _columns(f"nats at {DAMAGE:g}", selective.nats if selective else None)
        row |= _columns(f"nats at {DAMAGE:g} over constant", selective.ratio if selective else None)
        least = found.least_toxic.get(series)
        row[f"least {goal} within budget at strength"] = least.strength if least else None
        row |= _columns(f"least {goal} within budget", least.toxic if least else None)
        row |= _columns("reduction within budget", least.reduction if least else None)
        rows.append({**row, "prompts": found.prompts, "seeds": found.seeds})
    return csv_text(rows)


def dominance_csv(found: Estimates) -> str:
    """Return dominance.csv: every series against every other, for each cost."""
    rows = [
        {
            "cost": cost,
            "series": each.series,
            "other": each.other,
            **_columns("difference of hypervolumes", each.difference),
            "probability that hypervolume is above": each.above,
            "probability that front dominates": each.dominates,
        }
        for cost, comparisons in found.comparisons.items()
        for each in comparisons
    ]
    return csv_text(rows or [{"cost": "", "series": "", "other": ""}])


def _measure_name(measure: str, found: Estimates) -> str:
    return found.wording.goal if measure == TOXIC else measure


def _columns(name: str, interval: Interval | None) -> dict[str, float | None]:
    ends = (interval.mean, interval.low, interval.high) if interval else (None, None, None)
    return {name + end: value for end, value in zip(_ENDS, ends, strict=True)}
