"""Panels: the points of a sweep's fronts, few enough series per panel to distinguish them.

A panel shows one transform: its constant regulator, as the line to compare with, and at most three other regulators.
Each line begins at the unsteered model.

Limitations: points that cost more than `Wording.drawn_below` are in the tables only, because they would squeeze the
others.
"""

from dsas.reports.estimates import Estimates, Measures
from dsas.reports.front import FrontPoint
from dsas.reports.wording import Wording
from dsas.sweep.plan import Plan, SeriesPlan
from dsas.sweep.resampling import ENSEMBLE, TOXIC
from dsas.sweep.samples import UNSTEERED

BASELINE = "constant"
_BESIDE = 3


def front_panels(plan: Plan, found: Estimates) -> dict[str, list[FrontPoint]]:
    """Return the points of each panel: a transform with its constant regulator and at most three others."""
    panels: dict[str, list[FrontPoint]] = {}
    for transform in dict.fromkeys(each.transform for each in plan.series):
        series = [each for each in plan.series if each.transform == transform]
        constant = [each for each in series if each.regulator == BASELINE]
        others = [each for each in series if each.regulator != BASELINE]
        names = {each.name: each.regulator for each in series}
        if len(set(names.values())) < len(names):
            names = {name: name for name in names}
        parts = [others[start : start + _BESIDE] for start in range(0, len(others), _BESIDE)] or [[]]
        for number, part in enumerate(parts, start=1):
            title = transform if len(parts) == 1 else f"{transform} ({number} of {len(parts)})"
            panels[title] = [point for each in (*constant, *part) for point in _points(each, names[each.name], found)]
    return panels or {UNSTEERED: [_point(UNSTEERED, 0.0, found.cells[UNSTEERED, 0.0], found.wording)]}


def _points(series: SeriesPlan, label: str, found: Estimates) -> list[FrontPoint]:
    """Return the points of a series that are not too costly to draw, the unsteered model first."""
    wording = found.wording
    cells = {cell: measures for cell, measures in found.cells.items() if cell[0] in (UNSTEERED, series.name)}
    return [
        _point(label, strength, measures, wording)
        for (_, strength), measures in cells.items()
        if measures[wording.measure].mean <= wording.drawn_below
    ]


def _point(label: str, strength: float, measures: Measures, wording: Wording) -> FrontPoint:
    cost, toxic = measures[wording.measure], measures[TOXIC, ENSEMBLE]
    return FrontPoint(label, strength, *cost[:3], *(100 * end for end in toxic[:3]))
