"""Data sets: rows and columns of a local folder, by the name that a data set on the hub would have."""

import json
import sys
from pathlib import Path

import pytest

from dsas.errors import MissingExtraError, TextsError
from dsas.files.data_sets import read_rows

pytest.importorskip("datasets")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    rows = [{"text": f"line {n}", "messages": [{"role": "user", "content": f"hello {n}"}]} for n in range(3)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path / "set"


def test_a_column_gives_its_values_and_a_split_its_rows_with_their_places(folder: Path) -> None:
    assert read_rows(f"hub:{folder}:train:text")[1] == (f"hub:{folder}:train:text, row 1", "line 1")
    assert read_rows(f"hub:{folder}:train:messages")[2][1] == [{"role": "user", "content": "hello 2"}]
    assert sorted(read_rows(f"hub:{folder}:train")[0][1]) == ["messages", "text"]
    assert [value for _, value in read_rows(f"hub:{folder}:train[1:]:text")] == ["line 1", "line 2"]
    assert len(read_rows(f"hub:{folder}:train[:2]")) == 2


def test_a_data_set_that_is_not_there_and_a_column_it_does_not_have_are_named(folder: Path) -> None:
    with pytest.raises(TextsError, match="no column 'txt'; closest: 'text'"):
        read_rows(f"hub:{folder}:train:txt")
    with pytest.raises(TextsError, match="no such data set, or not readable"):
        read_rows(f"hub:{folder}:test:text")
    with pytest.raises(TextsError, match="expected hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:SPLIT:COLUMN"):
        read_rows("hub:owner/name")


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"'datasets' is not installed; .* 'dsas\[hub\]'"):
        read_rows("hub:owner/name:train")
