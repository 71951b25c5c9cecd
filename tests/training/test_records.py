"""The log: what it needs for TensorBoard, and which numbers go there."""

import sys
import types
from pathlib import Path
from typing import Any

import pytest

from dsas.errors import MissingExtraError
from dsas.training.records import Log, Row

ROW = Row(3, 0.5, 0.4, 0.1, 12, 0, 1e-3, 2.0)


def test_without_tensorboard_the_extra_that_brings_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'dsas\[tensorboard\]'"):
        Log(tmp_path, tensorboard=True)
    Log(tmp_path).close()


def test_every_number_that_was_measured_goes_to_tensorboard_under_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []

    class Writer:
        def __init__(self, folder: str) -> None:
            written.append(folder)

        def add_scalar(self, *arguments: Any) -> None:
            written.append(arguments)

        def close(self) -> None:
            written.append("closed")

    module = types.ModuleType("tensorboard")
    module.SummaryWriter = Writer  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    log = Log(tmp_path, tensorboard=True)
    log.begin(())
    log.add(ROW)
    log.close()
    assert written[0] == str(tmp_path / "tensorboard")
    assert ("loss", 0.5, 3) in written
    assert not any("held_loss" in entry for entry in written)
    assert written[-1] == "closed"


def test_a_log_that_begins_again_holds_the_lines_it_is_given_and_no_older_ones(tmp_path: Path) -> None:
    for rows in ((ROW, ROW), (ROW,)):
        Log(tmp_path).begin(rows)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 2
