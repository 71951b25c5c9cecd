"""A table is the same rows in CSV and in JSON, with nothing where nothing is known."""

import csv
import json
from pathlib import Path

import pytest

from dsas.errors import OptionError
from dsas.files.tidy_tables import check_ending, write_rows

ROWS = [{"site": 'a,"b"\nc', "mean": 0.5, "kept": True}, {"site": None, "mean": float("inf"), "kept": False}]


def test_both_formats_hold_the_same_rows_and_unknown_and_infinite_numbers_are_left_empty(tmp_path: Path) -> None:
    for name in ("t.csv", "t.jsonl"):
        write_rows(tmp_path / name, ROWS)
    with (tmp_path / "t.csv").open(newline="", encoding="utf-8") as opened:
        read = list(csv.DictReader(opened))
    assert read == [
        {"site": 'a,"b"\nc', "mean": "0.5", "kept": "True"},
        {"site": "", "mean": "", "kept": "False"},
    ]
    told = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert told == [ROWS[0], {"site": None, "mean": None, "kept": False}]


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"a table is a file ending in \.csv or \.jsonl, got 't\.xlsx'"):
        check_ending(tmp_path / "t.xlsx")
