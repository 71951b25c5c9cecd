"""Output: tables, and what a Steering does, site by site. Lines are printed plainly."""

import json
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dsas import Steering
    from dsas.evaluation.intervals import Interval


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    bold: Collection[int] = (),
    ruled: bool = False,
) -> None:
    """Print a table. bold: numbers of the rows that stand out. ruled: a line between rows."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(*columns, title=title or None, show_lines=ruled)
    for number, row in enumerate(rows):
        table.add_row(*map(escape, row), style="bold" if number in bold else None)
    Console().print(table)


def show(steering: "Steering", as_json: bool, **extra: str) -> None:
    """Print what a Steering does, site by site, and how it was made."""
    lines = steering.report()
    if as_json:
        found = steering.calibration.as_dict() if steering.calibration is not None else None
        facts = {"model": steering.model.as_dict(), "settings": steering.settings}
        facts |= {"strength": steering.strength, "calibration": found}
        print(json.dumps({**facts, "sites": [line._asdict() for line in lines], **extra}))
        return
    rows = [
        (line.site, "-" if line.accuracy is None else f"{line.accuracy:.2f}", f"{line.weight:.2f}", line.status)
        for line in lines
    ]
    title = f"Steering for {steering.model.model_class}"
    show_table(("site", "accuracy", "weight", "status"), rows, title=title)
    for key, value in {**steering.settings, **extra}.items():
        print(f"{key}: {value}")
    for line in steering.calibration.lines() if steering.calibration is not None else []:
        print(line)


def said(interval: "Interval | None") -> str:
    """Return a value with its 95 % interval; of one that there is not, a dash."""
    return "-" if interval is None else f"{interval.mean:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
