"""Text files: sets of texts from .txt (one a line), .jsonl (one object or string a line) and .csv (with a header)."""

import csv
import json
from pathlib import Path
from typing import Any

from dsas.errors import TextsError, closest
from dsas.files.json_values import JsonObject

DEFAULT_FIELD = "text"
ENCODING = "utf-8-sig"  # UTF-8, with or without the mark at its beginning that spreadsheets write


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
    except csv.Error as error:
        raise TextsError(f"{path}: not CSV: {error}") from error
    if not texts:
        raise TextsError(f"{path}: there is no text in it")
    return texts


def read_spans(path: str | Path) -> list[list[tuple[int, int]]]:
    """Return for each text of a .jsonl file its key "spans": [[start, stop], ...] in characters, none when absent.

    Raises TextsError, with file and line, for a file of another kind or spans of another form.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise TextsError(f"{path}: spans are read from a file ending in .jsonl, got {path.suffix or 'no ending'!r}")
    found = []
    for number, line in enumerate(_split(path), start=1):
        if not line.strip():
            continue
        value = json.loads(line)
        spans = value.get("spans", []) if isinstance(value, dict) else []
        whole = isinstance(spans, list) and all(
            isinstance(span, list) and len(span) == 2 and all(isinstance(end, int) for end in span) for span in spans
        )
        if not whole:
            raise TextsError(f"{path}:{number}: expected spans as [[start, stop], ...], got {spans!r:.60}")
        found.append([(span[0], span[1]) for span in spans])
    return found


def _lines(path: Path, field: str) -> list[str]:
    return [line for line in _split(path) if line.strip()]


def _split(path: Path) -> list[str]:
    """Return the lines of a file; what else Unicode calls a line break may be part of a text."""
    return path.read_text(encoding=ENCODING).split("\n")


def _json_lines(path: Path, field: str) -> list[str]:
    texts = []
    for number, line in enumerate(_split(path), start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise TextsError(f"{path}:{number}: not JSON: {error}") from error
        place = f"{path}:{number}"
        texts.append(_text(_field(value, field, place) if isinstance(value, dict) else value, place))
    return texts


def _rows(path: Path, field: str) -> list[str]:
    with path.open(encoding=ENCODING, newline="") as file:
        rows, texts = csv.DictReader(file), []
        for row in rows:
            place = f"{path}:{rows.line_num}"
            texts.append(_text(_field(row, field, place), place))
    return texts


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise TextsError(f"{place}: expected a text, got {type(value).__name__}")
    return value


def _field(row: JsonObject, field: str, place: str) -> Any:
    if field not in row:
        raise TextsError(f"{place}: no field {field!r}; closest: {closest(field, map(str, row))}")
    return row[field]
