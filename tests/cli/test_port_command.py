"""`dsas port`, driven as a user drives it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

SOURCE = [f"SHUT UP, {word} FOOLS!" for word in ("YOU", "ALL", "TWO", "MY")]
CONTROL = [f"the {word} is there" for word in ("door", "cat", "rain", "old tree")]


@pytest.mark.filterwarnings("ignore:every strength up to the limit")
def test_the_command_prints_the_verdict_and_stores_the_steering_of_the_other_model(
    run: Callable[..., Any], tmp_path: Path
) -> None:
    model: Any = tiny_model(seed=1)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(tiny_model()).save_pretrained(tmp_path / "detox")
    for name, texts in (("rude", SOURCE), ("plain", CONTROL)):
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    (tmp_path / "other.txt").write_text("\n".join(f"{text} again" for text in CONTROL))
    asked = ["port", tmp_path / "detox", tmp_path / "model", "--least", 0, "--out", tmp_path / "there"]
    asked += ["--source", tmp_path / "rude.txt", "--control", tmp_path / "plain.txt"]
    status, out, _ = run(*asked)
    assert status == 0
    assert "the model differs: their values differ" in out
    assert "verdict: fits\n" in out
    dsas.Steering.from_pretrained(tmp_path / "there").apply(model)  # and no warning
    told = json.loads(run(*asked, "--json", "--tune", tmp_path / "plain.txt", "--held-out", tmp_path / "other.txt")[1])
    assert told["verdict"] == "fits"
    assert told["strength"] == dsas.Steering.from_pretrained(tmp_path / "there").strength
    assert len(told["sites"]) == 3
