"""`dsas check`, driven as a user drives it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

import dsas
from dsas.evaluation.release_limits import RELEASE_LIMITS
from dsas.testing import tiny_model, tiny_tokenizer

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "detox")
    (tmp_path / "harmful.txt").write_text("\n".join(f"harmful {n}" for n in range(4)))
    return tmp_path


def checked(folder: Path, limits: dict[str, Any], *more: Any) -> list[Any]:
    (folder / "limits.json").write_text(json.dumps({**dict.fromkeys(RELEASE_LIMITS), **limits}))
    given = ["--limits", folder / "limits.json", "--harmful", folder / "harmful.txt", "--n", 3, "--new-tokens", 4]
    return ["check", folder / "detox", "--model", folder / "model", *given, *more]


def test_limits_that_are_kept_end_with_status_0_and_go_into_the_card(run: Run, folder: Path) -> None:
    before = dsas.Steering.from_pretrained(folder / "detox")
    status, out, err = run(*checked(folder, {"kl": 100, "lost-refusals": 1}))
    assert status == 0, err
    assert "not calibrated, so strength 1 was checked" in err
    assert "all limits are kept" in out
    after = dsas.Steering.from_pretrained(folder / "detox")
    assert list(after.settings["release check"]) == ["strength", "lost-refusals", "kl"]
    assert after.settings["release check"]["kl"] in (folder / "detox" / "README.md").read_text(encoding="utf-8")
    assert after.digest() == before.digest()
    assert not (folder / ".detox.checked").exists()


def test_a_broken_limit_ends_with_status_1_and_says_which(run: Run, folder: Path) -> None:
    status, out, _ = run(*checked(folder, {"kl": 1e-6, "over-refusal": 1}, "--json"))
    told = json.loads(out)
    assert (status, told["kept"]) == (1, False)
    assert {one["name"]: one["kept"] for one in told["measures"]} == {"over-refusal": True, "kl": False}
    assert told["measures"][1]["mean"] > 1e-6
    status, out, err = run(*checked(folder, {"kl": 1e-6, "over-refusal": 1}, "--strength", 0.5))
    assert "not calibrated" not in err
    assert (status, "1 of 2 limits are broken" in out, "at strength 0.5" in out) == (1, True, True)


def test_list_says_what_there_is_without_a_model_and_what_it_costs_with_one(run: Run, folder: Path) -> None:
    status, out, _ = run("check", "--list", "--json")
    rows = json.loads(out)
    assert status == 0
    assert [row["name"] for row in rows] == list(RELEASE_LIMITS)
    assert {row["minutes"] for row in rows} == {None}
    status, out, err = run(*checked(folder, {"kl": 1, "json": 1}, "--list", "--json"))
    assert status == 0, err
    minutes = {row["name"]: row["minutes"] for row in json.loads(out)}
    assert {name for name, cost in minutes.items() if cost is not None and cost > 0} == {"kl", "json"}
    assert "together about" in run(*checked(folder, {"json": 1}, "--list"))[1]
    assert "release check" not in dsas.Steering.from_pretrained(folder / "detox").settings
    assert "give a Steering and --model" in run("check", "--list")[1]
