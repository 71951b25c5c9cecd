"""Progress as plain lines, where stderr is not a terminal."""

from contextlib import suppress

import pytest

from dsas.parallel import progress
from dsas.parallel.progress import progress_bar


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock whose only entry is the time in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_task_is_told_when_it_begins_at_most_every_ten_seconds_and_when_it_ends(capsys, clock) -> None:
    with progress_bar(True) as bar:
        task = bar.add_task("reading", total=8)
        for now in (4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0):
            clock[0] = now
            bar.advance(task)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 0 of 8",
        "reading: 3 of 8, 0:20 left",
        "reading: 6 of 8, 0:08 left",
        "reading: 8 of 8 in 0:32",
    ]


def test_what_was_done_before_does_not_count_as_fast_work(capsys, clock) -> None:
    with progress_bar(True) as bar:
        task = bar.add_task("reading", total=100, completed=90)
        clock[0] = 60.0
        bar.update(task, completed=91)
    assert capsys.readouterr().err.splitlines()[1] == "reading: 91 of 100, 9:00 left"


def test_a_task_of_unknown_length_says_what_is_done_and_what_it_does_now(capsys, clock) -> None:
    with progress_bar(True) as bar:
        task = bar.add_task("calibrating", total=None)
        clock[0] = 11.0
        bar.update(task, completed=5, description="calibrating per site")
    assert capsys.readouterr().err.splitlines() == [
        "calibrating",
        "calibrating per site: 5 done",
        "calibrating per site: 5 done in 0:11",
    ]


def test_work_that_is_not_shown_or_is_interrupted_claims_no_end(capsys, clock) -> None:
    with progress_bar(False) as bar:
        bar.advance(bar.add_task("hidden", total=1))
    with suppress(KeyboardInterrupt), progress_bar(True) as bar:
        bar.advance(bar.add_task("reading", total=2))
        raise KeyboardInterrupt
    assert capsys.readouterr().err.splitlines() == ["reading: 0 of 2"]


def test_a_terminal_gets_a_bar_and_no_lines(capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with progress_bar(True) as bar:
        task = bar.add_task("reading [/INST]", total=2)
        bar.advance(task)
        bar.update(task, completed=2)
    written = capsys.readouterr().err
    assert "[/INST]" in written
    assert "2/2" in written
    assert "2 of 2" not in written
