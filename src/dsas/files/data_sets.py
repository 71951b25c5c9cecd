"""Data sets: rows of a data set on the Hugging Face hub, or of a local folder that `datasets` can read.

They are named hub:OWNER/NAME:SPLIT, or hub:OWNER/NAME:SPLIT:COLUMN for one column; a folder may stand for OWNER/NAME.
A split may be a slice as `datasets` has it, such as train[:100] or train[50%:].
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dsas.errors import MissingExtraError, TextsError, closest
from dsas.files.json_values import Json

PREFIX = "hub:"


def read_rows(name: str, *, configuration: str = "") -> list[tuple[str, Json]]:
    """Return what `each_row` yields, for data sets that are held whole."""
    return list(each_row(name, configuration=configuration))


def each_row(name: str, *, configuration: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the place of each row, for messages, and the row: an object, or the value of the column.

    configuration: which one of a data set on the hub that has several; a folder has none.
    Raises TextsError, naming the data set, for one that is not there or cannot be read; MissingExtraError without
    `datasets`.
    """
    parts = re.split(r":(?![^\[]*\])", name.removeprefix(PREFIX))  # not inside of a slice, such as train[:100]
    if len(parts) not in (2, 3) or not all(parts):
        raise TextsError(f"{name}: expected hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:SPLIT:COLUMN")
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("datasets", "hub") from error
    configurations = [configuration] if configuration and not Path(parts[0]).is_dir() else []
    try:
        rows: Any = datasets.load_dataset(parts[0], *configurations, split=parts[1])
    except Exception as error:  # errors of many kinds, from several libraries
        raise TextsError(f"{name}: no such data set, or not readable: {error}") from error
    column = parts[2] if len(parts) == 3 else None
    if column is not None and column not in rows.column_names:
        raise TextsError(f"{name}: no column {column!r}; closest: {closest(column, rows.column_names)}")
    for number, row in enumerate(rows):
        yield f"{name}, row {number}", row if column is None else row[column]
