"""Output: lines, tables, JSON, and what a Steering does, site by site. All that commands print goes through here.

Texts, Steerings and models come from other people: what they hold is shown and never interpreted, neither as markup nor
as control characters, which move a terminal's cursor, set its title, or turn the direction of reading.
"""

import re
import sys
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from dsas.files.json_values import Json, json_text
from dsas.files.tidy_tables import write_rows
from dsas.model.foreign import Foreign

if TYPE_CHECKING:
    from rich.console import Console

    from dsas import Steering
    from dsas.evaluation.intervals import Interval


# C0 except tab and line break, DEL and C1; marks of direction; separators of lines; halves of surrogates.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def visible(text: str) -> str:
    """Return a text with the characters that a terminal would interpret written as escapes."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(line: str, *, error: bool = False) -> None:
    """Print a line; error: on the error stream."""
    print(visible(line), file=sys.stderr if error else sys.stdout, flush=True)


def say_json(value: Json) -> None:
    """Print a value as one line of JSON."""
    print(json_text(value))


def console() -> "Console":
    """Return a console for the terminal that lets through only the control characters that it writes itself."""
    return _console_class()(highlight=False)


@cache
def _console_class() -> "type[Console]":
    from rich.console import Console

    class Plain(Console):
        """A console that shows control characters and markup as text."""

        def render(self, renderable: Foreign, options: Foreign = None) -> Iterable[Foreign]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=visible(segment.text))

        def render_str(self, text: str, **options: Foreign) -> Foreign:
            return super().render_str(visible(text), **{**options, "markup": False, "emoji": False})

    return Plain


def show_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    title: str = "",
    bold: Collection[int] = (),
    ruled: bool = False,
) -> None:
    """Print a table. bold: numbers of the rows that stand out. ruled: whether to draw a line between rows."""
    from rich.table import Table

    table = Table(*columns, title=title or None, show_lines=ruled)
    for number, row in enumerate(rows):
        table.add_row(*row, style="bold" if number in bold else None)
    console().print(table)


def write_sites(file: Path | None, steering: "Steering") -> None:
    """Write what a Steering does, site by site, as a table; None writes none."""
    if file is not None:
        write_rows(file, [line._asdict() for line in steering.report()])


def show(steering: "Steering", as_json: bool, **extra: Json) -> None:
    """Print what a Steering does, site by site, and how it was made."""
    from dsas.steering.subject_words import in_words, subject_name, told_settings

    lines, made = steering.report(), (steering.model, steering.settings)
    if as_json:
        found = steering.calibration.as_dict() if steering.calibration is not None else None
        facts = {"model": steering.model.as_dict(), "settings": steering.settings}
        facts |= {"strength": steering.strength, "calibration": found}
        say_json({**facts, "sites": [line._asdict() for line in lines], **extra})
        return
    rows = [
        (line.site, "-" if line.accuracy is None else f"{line.accuracy:.2f}", f"{line.weight:.2f}", line.status)
        for line in lines
    ]
    title = f"Steering for {subject_name(*made)}"
    show_table(("site", "accuracy", "weight", "status"), rows, title=title)
    for key, value in {**told_settings(*made), **extra}.items():
        say(f"{key}: {in_words(value)}")
    for line in steering.calibration.lines() if steering.calibration is not None else []:
        say(line)


def shown(interval: "Interval | None") -> str:
    """Return a value with its 95 % interval, or a dash when there is none."""
    return "-" if interval is None else f"{interval.mean:.3g} [{interval.low:.3g}, {interval.high:.3g}]"
