"""The command line, driven as a user drives it: arguments in; exit status, output and errors out."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from dsas import cli


class Run(NamedTuple):
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: Any) -> Run:
        monkeypatch.setattr(sys, "argv", ["dsas", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        return Run(int(ended.value.code or 0), captured.out, captured.err)

    return command
