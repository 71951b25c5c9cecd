"""Text files: sets of texts from .txt (one per line), .jsonl (an object or string per line), .csv (with a header)."""

import csv
import json
from collections.abc import Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path

from dsas.errors import TextsError, closest, shown
from dsas.files.json_values import Json, JsonObject

DEFAULT_FIELD = "text"
ENCODING = "utf-8-sig"  # UTF-8, with or without the byte order mark that spreadsheets write


def read_texts(path: str | Path, *, field: str = DEFAULT_FIELD) -> list[str]:
    """Return the texts of a file, empty lines left out; `field` names the JSON key or CSV column.

    Raises TextsError, with file and line, for a file that is missing, of another kind, or without that field.
    """
    return [text_of(field_of(value, field, place), place) for place, value in read_records(path)]


def read_records(path: str | Path) -> list[tuple[str, Json]]:
    """Return what `each_record` yields, for files that are held whole."""
    return list(each_record(path))


def each_record(path: str | Path) -> Iterator[tuple[str, Json]]:
    """Yield what each line of a file holds, with its place, "file:line": a text, a JSON value or a row of a table.

    Only one line is held at a time. Raises TextsError, with file and line, for a file that is missing, of another kind,
    or empty.
    """
    path = Path(path)
    readers = {".txt": _lines, ".jsonl": _json_lines, ".csv": _rows}
    if path.suffix.lower() not in readers:
        raise TextsError(f"{path}: expected a file ending in {', '.join(readers)}, got {path.suffix or 'no ending'!r}")
    if not _is_file(path):
        siblings = [file.name for file in path.parent.glob("*") if file.suffix.lower() in readers]
        raise TextsError(f"{path}: no such file; closest in its folder: {closest(path.name, siblings)}")
    empty = True
    try:
        for record in readers[path.suffix.lower()](path):
            empty = False
            yield record
    except OSError as error:
        raise TextsError(f"{path}: it cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise TextsError(f"{path}: expected UTF-8 text: {error}") from error
    except csv.Error as error:
        raise TextsError(f"{path}: not CSV: {error}") from error
    if empty:
        raise TextsError(f"{path}: there is no text in it")


def read_spans(path: str | Path) -> list[list[tuple[int, ...]]]:
    """Return for each line of a .jsonl file its key "spans", none when absent.

    They are [[start, stop], ...] in characters of a text, or [[message, start, stop], ...] in those of messages.
    Raises TextsError, with file and line, for a file of another kind or spans of another form.
    """
    path = Path(path)
    if path.suffix.lower() != ".jsonl":
        raise TextsError(f"{path}: spans are read from a file ending in .jsonl, got {path.suffix or 'no ending'!r}")
    found = []
    for place, value in read_records(path):
        spans = value.get("spans", []) if isinstance(value, dict) else []
        whole = isinstance(spans, list) and all(
            isinstance(span, list) and len(span) in (2, 3) and all(type(end) is int for end in span) for span in spans
        )
        if not whole:
            raise TextsError(
                f"{place}: expected spans as [[start, stop], ...], or [[message, start, stop], ...] in a "
                f"conversation, got {spans!r:.60}"
            )
        found.append(list(map(tuple, spans)))
    return found


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # such as a name that is too long, or that no file can have
        return False


def _lines(path: Path) -> Iterator[tuple[str, Json]]:
    with path.open(encoding=ENCODING) as file:
        for number, ended in enumerate(file, start=1):  # other line breaks of Unicode may be part of a text
            line = ended.removesuffix("\n")
            _check_text(line, f"{path}:{number}")
            if line.strip():
                yield f"{path}:{number}", line


def _check_text(text: str, place: str) -> None:
    if "\0" in text:
        raise TextsError(f"{place}: expected UTF-8 text, got a zero byte; is the file UTF-16?")


def _json_lines(path: Path) -> Iterator[tuple[str, Json]]:
    for place, line in _lines(path):
        yield place, json_of(line, place)


def json_of(text: str, place: str) -> Json:
    """Return a JSON value.

    Raises TextsError, naming the place, where it is none, holds half a character, or gives one key two values.
    """
    try:
        value = json.loads(text, object_pairs_hook=partial(_object, place))
        json.dumps(value, ensure_ascii=False).encode()
    except TextsError:
        raise
    except UnicodeEncodeError as error:
        raise TextsError(f"{place}: it holds a lone surrogate, which is not a character") from error
    except (ValueError, RecursionError) as error:
        raise TextsError(f"{place}: not JSON: {str(error) or type(error).__name__}") from error
    return value


def _object(place: str, pairs: list[tuple[str, Json]]) -> JsonObject:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise TextsError(f"{place}: the key {shown(twice)} appears twice")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Json]]:
    with path.open(encoding=ENCODING, newline="") as file:
        rows = csv.reader(file, strict=True)
        names, begun = next(rows, []), rows.line_num + 1
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise TextsError(f"{path}:1: the column {twice!r} appears twice")
        for cells in rows:
            place, begun = f"{path}:{begun}", rows.line_num + 1
            if len(cells) > len(names):
                raise TextsError(
                    f"{place}: expected {len(names)} cells as in the header, got {len(cells)}; put quotation marks "
                    f"around a text that holds a comma: {cells!r:.60}"
                )
            _check_text("".join(cells), place)
            if cells:
                yield place, dict(zip_longest(names, cells))


def text_of(value: Json, place: str) -> str:
    """Return a value that is a text. Raises TextsError, naming the place, for another one."""
    if not isinstance(value, str):
        raise TextsError(f"{place}: expected a text, got {type(value).__name__}")
    return value


def field_of(value: Json, field: str, place: str) -> Json:
    """Return a field of a row, or the value itself when it is not a row. Raises TextsError, naming the place."""
    if not isinstance(value, dict):
        return value
    if field not in value:
        raise TextsError(f"{place}: no field {field!r}; closest: {closest(field, map(str, value))}")
    return value[field]
