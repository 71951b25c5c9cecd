"""Results that are kept in files, found again, and measured again when a file is damaged."""

from pathlib import Path
from typing import Any

import pytest
from campaigns import checkpoints

from dsas.errors import DsasWarning
from dsas.files.atomic import keep, kept, replace_files
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
    with pytest.warns(DsasWarning, match=f"{file.name} is damaged: its result is measured again"):
        assert results.remember("read", [1], lambda: 7) == 7
    assert results.get("read", [1]) == 7


def test_what_another_command_takes_away_while_it_is_looked_for_counts_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # it was there a moment ago
    assert Results(tmp_path).get("read", 1) is None
    assert kept(tmp_path / "part", "it is made again") is None
    monkeypatch.setattr(Results, "put", lambda *_: None)  # and what is kept is gone at once
    assert Results(tmp_path).remember("read", 1, lambda: (1, 2)) == [1, 2]


def test_a_changed_digit_of_a_kept_result_is_noticed_and_measured_again(tmp_path: Path) -> None:
    measure, calls = counted({"nats": [1.5, 2.0]})
    Results(tmp_path).remember("read", 1, measure)
    (file,) = tmp_path.iterdir()
    for change in (
        lambda text: text.replace("1.5", "9.5"),
        lambda _: "",
        lambda _: "[" * 100_000,
        lambda text: text[:-2],
    ):
        file.write_text(change(file.read_text()))
        with pytest.warns(DsasWarning, match=f"{file.name} is damaged"):
            assert Results(tmp_path).remember("read", 1, measure) == {"nats": [1.5, 2.0]}
    assert len(calls) == 5


@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_checkpoint_in_which_one_bit_changed_counts_as_none_and_says_what_is_done(tmp_path: Path, place: int) -> None:
    file = tmp_path / "new" / "state"
    assert kept(file, "it begins anew") is None
    keep(file, b"state")
    assert kept(file, "it begins anew") == b"state"
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)
    with pytest.warns(DsasWarning, match="state is damaged .*: it begins anew"):
        assert kept(file, "it begins anew") is None


def test_a_kept_file_under_the_name_of_another_counts_as_damaged(tmp_path: Path) -> None:
    keep(tmp_path / "state-1", b"one")
    (tmp_path / "state-2").write_bytes((tmp_path / "state-1").read_bytes())
    with pytest.warns(DsasWarning, match="state-2 is damaged"):
        assert kept(tmp_path / "state-2", "it begins anew") is None
    results = Results(tmp_path / "jobs")
    results.put("read", 1, 5)
    (one,) = (tmp_path / "jobs").iterdir()
    results.put("read", 2, 6)
    (two,) = {*(tmp_path / "jobs").iterdir()} - {one}
    two.write_bytes(one.read_bytes())
    with pytest.warns(DsasWarning, match=f"{two.name} is damaged"):
        assert results.get("read", 2) is None


def test_what_lies_beside_while_it_is_written_follows_no_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("precious")
    monkeypatch.setattr("secrets.token_hex", lambda _: "guessed")
    (tmp_path / ".guessed.tmp").symlink_to(theirs)
    with pytest.raises(FileExistsError):
        replace_files({tmp_path / "ours": b"x"})
    assert theirs.read_text() == "precious"


@pytest.mark.filterwarnings("ignore::dsas.errors.DsasWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_from_damaged_checkpoints_every_verb_comes_to_the_result_of_an_undisturbed_run() -> None:
    for name, counts in checkpoints.run(rounds=6, seed=1).items():
        assert not [what for what in counts if "WRONG" in what], name
        assert counts["same, and damage was said"] > 0, name
