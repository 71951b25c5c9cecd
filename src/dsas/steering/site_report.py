"""Site report: what a Steering does at each of its sites, and what came of it when it was applied last."""

from collections.abc import Sequence
from typing import NamedTuple

from dsas.runtime.applied import Applied
from dsas.runtime.rule import Rule


class SiteReport(NamedTuple):
    """One line of `Steering.report`.

    accuracy, weight: as in `Rule`. status: "steered", or why not. mean_strength: mean applied strength over the real
    tokens of the last sequence of the latest apply, hits: how many of them had a regulator above one half; both None
    before anything was recorded.
    """

    site: str
    accuracy: float | None
    weight: float
    status: str
    mean_strength: float | None
    hits: int | None


def site_reports(rules: Sequence[Rule], latest: Applied | None) -> list[SiteReport]:
    """Return a line per rule; latest: the apply whose record is read, where there is one."""
    measured = latest.summary() if latest is not None and latest.has_trace else {}
    lines = []
    for rule in rules:
        mean, hits = measured.get(str(rule.site), (None, None))
        status = "steered" if rule.weight > 0 else "not steered: its weight is 0"
        if rule.weight == 0 and rule.accuracy is not None:
            status = f"not steered: held-out accuracy {rule.accuracy:.2f} is too low"
        lines.append(SiteReport(str(rule.site), rule.accuracy, rule.weight, status, mean, hits))
    return lines
