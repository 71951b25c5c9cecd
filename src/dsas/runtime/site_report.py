"""Site report: what was fitted at each site of a Steering, and what happened there when it was applied."""

from collections.abc import Sequence
from typing import NamedTuple

from dsas.model.site_summary import SiteSummary
from dsas.model.sites import labels
from dsas.runtime.rule import Rule

_UNRECORDED = "steered, but not recorded: its tokens are not those given to the decoder"


class FittedSite(NamedTuple):
    """One line of `Steering.report`: accuracy and weight as in `Rule`; status: "steered", or why it is not."""

    site: str
    accuracy: float | None
    weight: float
    status: str


class AppliedSite(NamedTuple):
    """One line of `Applied.report`.

    status: "steered", or why nothing is known or was done. mean_strength: mean applied strength over real tokens or
    positions of the last sequence or run. hits: how many of them had a regulator above one half. Both are None where
    nothing was recorded.
    """

    site: str
    weight: float
    status: str
    mean_strength: float | None
    hits: int | None


def fitted_report(rules: Sequence[Rule]) -> list[FittedSite]:
    """Return a line per rule."""
    names = labels([rule.site for rule in rules])
    return [
        FittedSite(name, rule.accuracy, rule.weight, _selected(rule)) for name, rule in zip(names, rules, strict=True)
    ]


def applied_report(
    rules: Sequence[Rule], found: Sequence[SiteSummary], fired: Sequence[bool], *, recording: bool, ran: bool
) -> list[AppliedSite]:
    """Return a line per rule; found, fired: records, and whether the site ran, for rules with a weight."""
    unknown = "never fired" if ran else "nothing was recorded yet" if recording else "not known: recording is off"
    recorded, lines = iter(zip(found, fired, strict=True)), []
    for name, rule in zip(labels([rule.site for rule in rules]), rules, strict=True):
        if rule.weight == 0:
            lines.append(AppliedSite(name, 0.0, _selected(rule), None, None))
            continue
        (mean, hits), acted = next(recorded)
        status = "steered" if mean is not None else _UNRECORDED if acted and recording else unknown
        lines.append(AppliedSite(name, rule.weight, status, mean, hits))
    return lines


def _selected(rule: Rule) -> str:
    if rule.weight > 0:
        return "steered"
    if rule.accuracy is None:
        return "not steered: its weight is 0"
    return f"not steered: not selected, with a held-out accuracy of {rule.accuracy:.2f}"
