"""Text files: sets of texts from .txt (one a line), .jsonl (one object or string a line) and .csv (with a header)."""

import csv
import json
from pathlib import Path
from typing import Any

from dsas.errors import TextsError, closest

DEFAULT_FIELD = "text"


def read_texts(path: str | Path, *, field: str = DEFAULT_FIELD) -> list[str]:
    """Return the texts of a file, empty lines left out; `field` names the JSON key or CSV column.

    Raises TextsError, with file and line, for a file that is missing, of another kind, or without that field.
    """
    path = Path(path)
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _rows}
    if path.suffix.lower() not in readers:
        raise TextsError(f"{path}: expected a file ending in {', '.join(readers)}, got {path.suffix or 'no ending'!r}")
    if not path.is_file():
        siblings = [file.name for file in path.parent.glob("*") if file.suffix.lower() in readers]
        raise TextsError(f"{path}: no such file; closest in its folder: {closest(path.name, siblings)}")
    try:
        texts = readers[path.suffix.lower()](path, field)
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: expected UTF-8 text: {error}") from error
    if not texts:
        raise TextsError(f"{path}: there is no text in it")
    return texts


def _lines(path: Path, field: str) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _json_lines(path: Path, field: str) -> list[str]:
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise TextsError(f"{path}:{number}: not JSON: {error}") from error
        if isinstance(value, dict):
            value = _field(value, field, f"{path}:{number}")
        if not isinstance(value, str):
            raise TextsError(f"{path}:{number}: expected a text, got {type(value).__name__}")
        texts.append(value)
    return texts


def _rows(path: Path, field: str) -> list[str]:
    with path.open(encoding="utf-8", newline="") as file:
        return [_field(row, field, f"{path}:{number}") for number, row in enumerate(csv.DictReader(file), start=2)]


def _field(row: dict[str, Any], field: str, place: str) -> Any:
    if field not in row:
        raise TextsError(f"{place}: no field {field!r}; closest: {closest(field, map(str, row))}")
    return row[field]
