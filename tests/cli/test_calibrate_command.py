"""`dsas calibrate`, and the strength it stores where none is given, driven as a user drives them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering, unchecked

import dsas
from dsas.calibration.budget import Budget
from dsas.steering.folder import CONFIG
from dsas.testing import tiny_model, tiny_tokenizer

Run = Callable[..., Any]
DOORS = [f"the door number {n} is open" for n in range(24)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "detox")
    (tmp_path / "neutral.txt").write_text("\n".join(DOORS[::2]))
    (tmp_path / "other.txt").write_text("\n".join(DOORS[1::2]))
    return tmp_path


def simple(folder: Path) -> list[Any]:
    files = ["--tune", folder / "neutral.txt", "--held-out", folder / "other.txt"]
    return ["calibrate", folder / "model", folder / "detox", *files, "--budget", "kl=0.1"]


def test_two_files_of_texts_are_enough_and_the_result_is_that_of_the_library(run: Run, folder: Path) -> None:
    before = dsas.Steering.from_pretrained(folder / "detox")
    status, out, err = run(*simple(folder), "--json")
    assert status == 0, err
    expected = dsas.calibrate(
        tiny_model(), tiny_tokenizer(), before, tune={"neutral": DOORS[::2]}, held_out={"other": DOORS[1::2]},
        budget=dsas.Budget("kl", 0.1), progress=False,
    )  # fmt: skip
    after = dsas.Steering.from_pretrained(folder / "detox")
    assert (after.calibration, after.digest()) == (expected, before.digest())
    told = json.loads(out)
    assert told == {**json.loads(json.dumps(expected.as_dict())), "kept": True, "saved": str(folder / "detox")}
    assert [path.name for path in folder.iterdir() if path.name.startswith(".")] == []


def test_kinds_budgets_and_the_other_options_reach_the_search_and_the_evidence_is_shown(run: Run, folder: Path) -> None:
    files = ["--tune", f"first={folder / 'neutral.txt'}", "--held-out", f"first={folder / 'other.txt'}"]
    budgets = [part for budget in ("perplexity=1.5", "kl=0.1", "loss=0.5") for part in ("--budget", budget)]
    options = [*budgets, "--worst", "--per", "site", "--start", 0.01]
    status, out, err = run(
        "calibrate", folder / "model", folder / "detox", *files, *options, "--limit", 8, "--out", folder / "new" / "x"
    )
    assert status == 0, err
    found = dsas.Steering.from_pretrained(folder / "new" / "x")
    assert found.calibration is not None
    assert [(spent.damage, spent.most, spent.worst) for spent in found.calibration.budgets] == [
        ("perplexity", 1.5, True),
        ("kl", 0.1, True),
        ("loss", 0.5, True),
    ]
    assert list(found.calibration.tune) == ["first"]
    assert min(strength or 0 for strength, *_ in found.calibration.curve) == 0.01
    assert {str(rule.site): rule.weight for rule in found.rules} == found.calibration.weights
    assert set(found.calibration.weights.values()) != {1.0}
    assert all(line in out for line in found.calibration.lines())
    assert all(text in out for text in ("Damage on the tuning texts", "held-out texts", "all kinds", "saved:"))
    assert dsas.Steering.from_pretrained(folder / "detox").calibration is None
    shown = run("info", folder / "new" / "x")[1]
    assert all(line in " ".join(shown.split()) for line in found.calibration.lines())
    told = json.loads(run("info", folder / "new" / "x", "--json")[1])
    assert told["strength"] == found.strength == told["calibration"]["strength"]


def test_the_stored_strength_is_that_of_every_command_to_which_none_is_given(run: Run, folder: Path) -> None:
    assert run(*simple(folder))[0] == 0
    strength = dsas.Steering.from_pretrained(folder / "detox").strength
    assert strength not in (None, 1.0)
    given = ["generate", folder / "model", "shut up", "--steering", folder / "detox", "--new-tokens", 6, "--json"]
    assert run(*given) == run(*given, "--strength", strength)
    assert json.loads(run(*given)[1])["strength"] == strength
    assert json.loads(run(*given, "--strength", 0.5)[1])["strength"] == 0.5
    shown = run(*given[:-1], "--explain")[1]
    assert f"0 to {strength:g}" in shown
    text = ["explain", folder / "model", "shut up", "--steering", folder / "detox"]
    assert run(*text, "--json") == run(*text, "--json", "--strength", strength)
    run(*text, "--out", folder / "page.html")
    assert f"steered at strength {strength:g}</title>" in (folder / "page.html").read_text(encoding="utf-8")


def test_an_interrupted_calibration_keeps_what_it_measured_and_writes_no_steering(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, calls = Budget.values, []

    def interrupted(self: Budget, *arguments: Any) -> list[float]:
        if len(calls) == 4:
            calls.append("interrupt")
            raise KeyboardInterrupt
        calls.append("measured")
        return values(self, *arguments)

    before = (folder / "detox" / CONFIG).read_bytes()
    monkeypatch.setattr(Budget, "values", interrupted)
    status, _, err = run(*simple(folder))
    assert (status, "rerun the same command to resume" in err) == (130, True)
    assert (folder / "detox" / CONFIG).read_bytes() == before
    assert len(list((folder / ".detox.calibrated").iterdir())) == 4
    assert run(*simple(folder))[0] == 0
    found = dsas.Steering.from_pretrained(folder / "detox").calibration
    assert found is not None
    assert calls.count("measured") == len(found.curve) + 1  # every strength once, and the held-out texts
    assert not (folder / ".detox.calibrated").exists()


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--budget", "ppl=1.05"], "unknown budget 'ppl'; closest: "),
        (["--budget", "kl"], "expected --budget as perplexity=1.05 or kl=0.02, got 'kl'"),
        (["--budget", "accuracy=2"], "needs its measure"),
        (["--held-out", "{}/neutral.txt"], "12 held-out texts are tuning texts, too"),
        (["--tune", "plain={}/neutrl.txt"], "closest in its folder: 'neutral.txt'"),
        (["--start", "2", "--limit", "1"], "0 < start <= limit"),
        (["--start", "4"], "no strength from 4 up keeps the budget"),
        (["--per", "head"], "Invalid value for '--per': 'head' is not one of 'all', 'site'"),
    ],
)
def test_bad_input_ends_with_status_2_and_writes_nothing(
    run: Run, folder: Path, change: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dsas, "calibrate", unchecked(dsas.calibrate))
    before = (folder / "detox" / CONFIG).read_bytes()
    status, out, err = run(*simple(folder), *(text.format(folder) for text in change))
    assert (status, out) == (2, "")
    assert message in err
    assert [line[:7] for line in err.splitlines() if line][-1] == "error: "
    assert "Traceback" not in err
    assert (folder / "detox" / CONFIG).read_bytes() == before


def test_a_steering_that_is_not_in_a_folder_needs_a_place_to_be_written_to(run: Run, folder: Path) -> None:
    arguments = ["someone/detox" if argument == folder / "detox" else argument for argument in simple(folder)]
    status, _, err = run(*arguments)
    assert (status, "so give --out, the folder" in err) == (2, True)


@pytest.mark.filterwarnings("default")
def test_a_budget_that_is_not_kept_on_the_held_out_texts_is_told_and_stored(run: Run, folder: Path) -> None:
    (folder / "other.txt").write_text("\n".join(f"{n}?! AAA zzz" for n in range(30, 50)))
    status, out, err = run(*simple(folder), "--json")
    assert (status, json.loads(out)["kept"]) == (0, False), err
    assert "warning: the budget is not kept on the held-out texts" in err
    stored = dsas.Steering.from_pretrained(folder / "detox").calibration
    assert stored is not None
    assert not stored.kept


def test_help_has_an_example(run: Run) -> None:
    status, out, _ = run("calibrate", "--help")
    assert status == 0
    assert "Example: dsas calibrate" in " ".join(out.split())
