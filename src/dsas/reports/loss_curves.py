"""Selectivity in a report: columns for each series, a table, and one figure of what source and control texts lose.

The figure has a panel for each kind of control text: its loss to the right, that of the source texts upwards, a line
for each series, a point for each strength, bars for 95 % intervals over texts. Higher at the same place is better. The
dashed line is the stated damage.

Limitations: strengths beyond the first that does twice the stated damage are not drawn.
"""

from collections.abc import Mapping

from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.loss_curve import DAMAGE, MARGIN
from dsas.evaluation.selectivity import Selectivity
from dsas.reports.front import FrontPoint, front_multiples
from dsas.reports.page import Page
from dsas.reports.rounding import plain

NOT_MEASURED, NOT_REACHED = "not measured", "not reached"
CONSTANT = "times the constant regulator's"


def selectivity_columns(one: Selectivity | None) -> dict[str, str]:
    """Return the columns of a series: the nats of its source texts with interval, and their ratio to the constant's."""
    if one is None:
        return {_title(DAMAGE): NOT_MEASURED, CONSTANT: NOT_MEASURED}
    return {_title(one.damage): _interval_text(one.nats), CONSTANT: _interval_text(one.ratio, 2)}


def add_selectivity(page: Page, found: Mapping[str, Selectivity], *, resamples: int, seed: int) -> None:
    """Add a section with the selectivity of each series, by name, or with how to have it measured."""
    page.heading("Selectivity")
    if not found:
        page.paragraph(
            "Not measured: it needs held-out source texts, which no Steering was fitted on (dsas pareto "
            "--held-out-source FILE; in Python source= of the part 'report')."
        )
        return
    damage = next(iter(found.values())).damage
    page.paragraph(
        f"What held-out source texts lose, in nats per token, where the held-out control texts lose {damage:g} on "
        "average over their kinds: how much less probable unwanted text becomes at that cost. Nothing is sampled. "
        "The second column is the ratio to the same transform with a constant regulator."
    )
    page.table([_row(name, one) for name, one in found.items()], "Each series at the stated damage, and per kind")
    drawing = front_multiples(
        loss_panels(found, resamples=resamples, seed=seed),
        x_label="control texts lose, nats per token",
        y_label="source texts lose, nats per token",
        budget=damage,
    )
    page.figure(drawing.svg, "Loss on source texts against loss on each kind of control text; higher is better")


def loss_panels(found: Mapping[str, Selectivity], *, resamples: int, seed: int) -> dict[str, list[FrontPoint]]:
    """Return the points of every series for each kind of control text, the unsteered model first."""
    panels: dict[str, list[FrontPoint]] = {}
    for name, one in found.items():
        source = {0.0: Interval(0.0, 0.0, 0.0, 0)}
        kinds = {kind: dict(source) for kind in one.curve.losses[0].control}
        for strength, losses in zip(one.curve.strengths, one.curve.losses, strict=True):
            source[strength] = bootstrap(losses.source[:, None], resamples=resamples, seed=seed)
            for kind, values in losses.control.items():
                kinds[kind][strength] = bootstrap(values[:, None], resamples=resamples, seed=seed)
            if losses.damage >= MARGIN * one.damage:
                break
        for kind, by_strength in kinds.items():
            points = [FrontPoint(name, at, *x[:3], *source[at][:3]) for at, x in by_strength.items()]
            panels[kind] = panels.get(kind, []) + points
    return panels


def selectivity_line(one: Selectivity) -> str:
    """Return the headline of a series in a line."""
    if one.nats is None:
        return f"no measured strength costs control texts {one.damage:g} nats per token"
    ratio = "" if one.ratio is None else f", {plain(one.ratio, 2)} {CONSTANT}"
    return f"source texts lose {plain(one.nats)} {_title(one.damage)}{ratio}"


def _row(name: str, one: Selectivity) -> dict[str, str]:
    row = {"series": name, **selectivity_columns(one), "at strength": _interval_text(one.strength)}
    for kind in one.curve.losses[0].control:
        at = one.kinds.get(kind)
        row[f"{kind} loses there"] = _interval_text(at.loss if at else None)
        row[f"source, where {kind} alone loses {one.damage:g}"] = _interval_text(at.nats if at else None)
    return row


def _title(damage: float) -> str:
    return f"nats at {damage:g}"


def _interval_text(interval: Interval | None, digits: int = 3) -> str:
    return NOT_REACHED if interval is None else plain(interval, digits)
