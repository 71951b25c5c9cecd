"""The loop: exact resume, log files, Ctrl-C, early stopping, and a loss that is not a number."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import trainer_of

from dsas.errors import DsasWarning
from dsas.training.loop import learn
from dsas.training.plan import HeldOut, Optimiser
from dsas.training.records import Log
from dsas.training.trainer import Trainer


class Cut(Exception):
    """Stands for whatever ends a process."""


def cut_at(trainer: Trainer, number: int, error: type[BaseException]) -> None:
    take = trainer.descent.step

    def move(place: int) -> None:
        take(place)
        if trainer.taken == number:  # pyright: ignore[reportAttributeAccessIssue]
            raise error
        trainer.taken += 1  # pyright: ignore[reportAttributeAccessIssue]

    trainer.taken, trainer.descent.step = 0, move  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_a_resumed_training_ends_in_the_same_bits_as_one_that_was_never_cut(tmp_path: Path, name: Any) -> None:
    options = {"dtype": torch.float32, "optimiser": Optimiser(name, 0.02, 0.02), "held_out": HeldOut(0.2, every=3)}
    whole = learn(trainer_of(**options), progress=False)
    file, log = tmp_path / "state.safetensors", tmp_path / "log"
    for number in (4, 3):
        trainer = trainer_of(**options)
        cut_at(trainer, number, Cut)
        with pytest.raises(Cut):
            learn(trainer, file=file, log=Log(log), progress=False)
    resumed = learn(trainer_of(**options), file=file, log=Log(log), progress=False)
    assert all(torch.equal(value, whole.values[key]) for key, value in resumed.values.items())
    plain = [row._replace(seconds=0) for row in whole.rows]
    assert [row._replace(seconds=0) for row in resumed.rows] == plain
    again = learn(trainer_of(**options), file=file, progress=False)
    assert again.steps == whole.steps
    assert again.rows == resumed.rows
    lines = [json.loads(line) for line in (log / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [row.loss for row in resumed.rows]
    with (log / "log.csv").open(newline="") as opened:
        table = list(csv.DictReader(opened))
    assert [float(line["support"]) for line in table] == [row.support for row in resumed.rows]


def test_a_damaged_state_is_not_used_and_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "state").write_bytes(b"nothing")
    with pytest.warns(DsasWarning, match="is damaged .* training starts from the beginning"):
        found = learn(trainer_of(), file=tmp_path / "state", progress=False)
    assert found.steps == 12


def test_ctrl_c_in_the_middle_of_a_step_gives_the_best_so_far() -> None:
    options = {"held_out": HeldOut(0.2, every=1)}
    trainer = trainer_of(**options)
    cut_at(trainer, 5, KeyboardInterrupt)
    found = learn(trainer, progress=False)
    assert (found.stopped, found.steps) == ("interrupted", 5)
    losses = [row.held_loss for row in found.rows]
    assert found.best_step == losses.index(min(losses))
    other = trainer_of(**options)
    for number in range(found.best_step):
        other.step(number)
    assert all(torch.equal(found.values[name], value) for name, value in other.leaves.items())


def test_training_stops_when_the_held_out_loss_no_longer_falls_and_keeps_its_least() -> None:
    trainer = trainer_of(
        optimiser=Optimiser("adam", 3.0, 3.0, floor=1.0), held_out=HeldOut(0.2, every=1, patience=3), steps=500
    )
    found = learn(trainer, progress=False)
    losses = [row.held_loss for row in found.rows]
    assert found.stopped == "early"
    assert found.best_step == losses.index(min(losses)) == len(losses) - 1 - 3


def test_a_loss_that_is_no_number_ends_training_with_the_last_good_parameters() -> None:
    trainer = trainer_of(optimiser=Optimiser("sgd", 1e300, 1.0), steps=50)
    found = learn(trainer, progress=False)
    assert found.stopped == "diverged"
    assert found.rows[-1].loss is None
    assert all(math.isfinite(row.loss) for row in found.rows[:-1])
