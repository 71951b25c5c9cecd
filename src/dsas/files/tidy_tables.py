"""Tidy tables: the findings of a report as rows of named values, in a .csv or a .jsonl file, for pandas and others.

A row is one observation, a column one quantity, and every row has the same columns: `docs/reference/tables.md` says
what each means. What is not known is empty in CSV and null in JSON; so is a number that is not finite.
"""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path

from dsas.errors import OptionError
from dsas.files.atomic import replace_files
from dsas.files.json_values import JsonObject, json_text

ENDINGS = (".csv", ".jsonl")


def check_ending(file: Path) -> None:
    """Raise OptionError for a file name that is not that of a table."""
    if file.suffix not in ENDINGS:
        raise OptionError(f"a table is a file ending in {' or '.join(ENDINGS)}, got {file.name!r}")


def write_rows(file: Path, rows: Sequence[JsonObject]) -> None:
    """Write at least one row, all with the same columns, all or nothing. Raises OptionError for another ending."""
    check_ending(file)
    text = csv_text(rows) if file.suffix == ".csv" else "".join(f"{json_text(row)}\n" for row in rows)
    replace_files({file: text.encode()})


def csv_text(rows: Sequence[JsonObject]) -> str:
    """Return at least one row, all with the same columns, as CSV with a header."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _finite(value) for name, value in row.items()} for row in rows)
    return stream.getvalue()


def _finite(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
