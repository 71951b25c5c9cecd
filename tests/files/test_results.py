"""Results that are kept in files, found again, and measured again when a file is damaged."""

from pathlib import Path
from typing import Any

import pytest

from dsas.errors import DsasWarning
from dsas.files.results import Results


def counted(value: Any) -> Any:
    """Return a measurement and the list that grows whenever it is made."""
    calls: list[int] = []

    def measure() -> Any:
        calls.append(1)
        return value

    return measure, calls


def test_a_result_is_measured_once_and_found_by_another_process(tmp_path: Path) -> None:
    measure, calls = counted({"nats": [1.5, 2.0]})
    for _ in range(2):
        assert Results(tmp_path / "kept").remember("read", ["model", 0.1], measure) == {"nats": [1.5, 2.0]}
    assert len(calls) == 1
    assert [file.name.split("-")[0] for file in (tmp_path / "kept").iterdir()] == ["read"]


@pytest.mark.parametrize(("name", "depends"), [("read", ["model", 0.2]), ("score", ["model", 0.1])])
def test_a_result_of_another_name_or_dependency_is_not_taken_for_this_one(
    tmp_path: Path, name: str, depends: list[Any]
) -> None:
    results = Results(tmp_path)
    results.put("read", ["model", 0.1], 1)
    assert results.get("read", ["model", 0.1]) == 1
    assert results.get(name, depends) is None


def test_a_result_that_means_nothing_to_python_is_still_a_result(tmp_path: Path) -> None:
    measure, calls = counted([])
    for _ in range(2):
        assert Results(tmp_path).remember("generate", [], measure) == []
    assert len(calls) == 1


@pytest.mark.parametrize("content", ["", '{"result": [1, 2', "[1, 2]", "3", '{"other": 1}', "\udcff"])
def test_a_damaged_file_is_a_warning_that_names_it_and_what_it_held_is_measured_again(
    tmp_path: Path, content: str
) -> None:
    results = Results(tmp_path)
    results.put("read", [1], 5)
    (file,) = tmp_path.iterdir()
    file.write_bytes(content.encode("utf-8", errors="surrogateescape"))
    with pytest.warns(DsasWarning, match=f"{file.name} is damaged: what it held is measured again"):
        assert results.remember("read", [1], lambda: 7) == 7
    assert results.get("read", [1]) == 7
