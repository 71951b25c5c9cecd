"""Every report can be written as a table, with the columns that its page explains and the rows that it holds."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from make_options import options
from makers import random_steering
from tables_page import MORE, columns_of, named

from dsas.evaluation.release_limits import RELEASE_LIMITS
from dsas.regulators import REGULATORS
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.transforms import TRANSFORMS


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model: Any = tiny_model()
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "detox")
    for name in ("rude", "plain"):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"{name} text {number}, you" for number in range(6)))
    torch.save({1: torch.randn(32), 2: torch.randn(32)}, tmp_path / "v.pt")
    (tmp_path / "limits.json").write_text(json.dumps({**dict.fromkeys(RELEASE_LIMITS), "kl": 100}))
    return tmp_path


SETS = "{0}/model --source {0}/rude.txt --control {0}/plain.txt --target {0}/plain.txt"
COMMANDS = {
    "explain": "explain {0}/model HELLO --steering {0}/detox --strength 1 --out {0}/page.html",
    "fires-on": "fires-on {0}/detox --model {0}/model --texts {0}/rude.txt --texts {0}/plain.txt",
    "selectivity": "selectivity {0}/detox --model {0}/model --source {0}/rude.txt --control {0}/plain.txt",
    "check": "check {0}/detox --model {0}/model --limits {0}/limits.json --n 2 --new-tokens 2",
    "info": "info {0}/detox",
    "calibrate": "calibrate {0}/model {0}/detox --tune {0}/rude.txt --held-out {0}/plain.txt --budget kl=0.1",
    "port": "port {0}/detox {0}/model --source {0}/rude.txt --control {0}/plain.txt --least 0",
    "generate": "generate {0}/model --file {0}/rude.txt --steering {0}/detox --compare --new-tokens 2",
    "fit": f"fit {SETS} --out {{0}}/fitted --general 0",
    "train": f"train {SETS} --out {{0}}/trained --steps 1",
    "adopt": "adopt {0}/v.pt --model {0}/model --source {0}/rude.txt --control {0}/plain.txt --out {0}/adopted",
    "inspect-data": "inspect-data --source {0}/rude.txt --control {0}/plain.txt --model {0}/model",
    "methods": "methods",
    "check --list": "check --list",
    "doctor": "doctor",
}
SIZES = {"explain": 3 * len("HELLO"), "fires-on": 2 + 3 + 2 * 3, "check": 1, "port": 3, "info": 3}  # 3 sites
SIZES |= {"generate": 2 * 6, "fit": 3, "adopt": 2 + 2, "methods": len(TRANSFORMS) + len(REGULATORS)}
SIZES |= {"check --list": len(RELEASE_LIMITS)}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.filterwarnings("ignore:the budget is not kept on the held-out texts")
def test_a_command_writes_the_documented_columns_in_both_formats(
    run: Callable[..., Any], folder: Path, command: str
) -> None:
    asked = COMMANDS[command].format(folder).split()
    for ending in ("csv", "jsonl"):
        status, _, err = run(*asked, "--table", folder / f"t.{ending}")
        assert status == 0, err
    with (folder / "t.csv").open(newline="", encoding="utf-8") as opened:
        read = list(csv.DictReader(opened))
    told = [json.loads(line) for line in (folder / "t.jsonl").read_text().splitlines()]
    assert list(read[0]) == list(told[0])
    assert [name for name in read[0] if name not in MORE.get(command, ())] == columns_of(command)
    strengths = len({row["strength"] for row in read if "strength" in row})
    of_strengths = {"selectivity": 12 * strengths, "calibrate": strengths + 2}  # a held-out kind, and all of them
    assert len(read) == len(told) == {**SIZES, **of_strengths}.get(command, len(told))


def test_every_command_writes_a_table_or_the_page_says_that_it_has_none() -> None:
    writing, without = named()
    asked = {command for command, of in options().items() if "--table" in of}
    assert asked | {"pareto", "demo"} == writing  # these two always write one
    assert writing | without == set(options())
    assert not asked & without - {"serve"}


def test_a_table_of_another_kind_is_refused_before_a_model_is_loaded(run: Callable[..., Any], folder: Path) -> None:
    for command in COMMANDS.values():
        status, _, err = run(
            *command.replace("{0}/model", "someone/absent").format(folder).split(), "--table", "t.xlsx"
        )
        assert (status, "a table is a file ending in .csv or .jsonl, got 't.xlsx'" in err) == (2, True)
