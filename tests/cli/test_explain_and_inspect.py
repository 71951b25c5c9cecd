"""The commands that show what was steered and what is wrong with texts, driven as a user drives them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

Run = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tiny_model()
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "detox")
    (tmp_path / "rude.txt").write_text("\n".join(f"SHUT UP, {n} fools!" for n in range(9)))
    (tmp_path / "plain.txt").write_text("\n".join(f"the door number {n} is over there" for n in range(9)))
    return tmp_path


def test_explain_writes_a_page_about_the_texts_of_a_file(run: Run, folder: Path) -> None:
    given = ["explain", folder / "model", "--file", folder / "rude.txt", "--steering", folder / "detox"]
    status, out, _ = run(*given, "--out", folder / "sub" / "page.html", "--strength", 0.5)
    assert (status, out) == (0, f"page: {folder / 'sub' / 'page.html'}\n")
    page = (folder / "sub" / "page.html").read_text(encoding="utf-8")
    assert "<title>What detox steered at strength 0.5</title>" in page
    assert '"label":"Text 9"' in page


def test_explain_prints_json_with_continuations_and_next_tokens_when_asked(run: Run, folder: Path) -> None:
    given = ["explain", folder / "model", "Hi", "--steering", folder / "detox", "--json"]
    status, out, _ = run(*given, "--generate", 3, "--next-tokens", 2, "--skip-sinks")
    (row,) = json.loads(out)["rows"]
    assert status == 0
    assert len(row["tokens"]) == 5
    assert row["comparison"]["prompt_tokens"] == 2
    assert len(row["next_tokens"]["before"][0]) == 2
    assert [values[0] for values in row["strength"]] == [0.0] * 3
    (read,) = json.loads(run(*given)[1])["rows"]
    assert "comparison" not in read


def test_generate_can_write_its_text_token_by_token(run: Run, folder: Path) -> None:
    given = ["generate", folder / "model", "Hi there", "--steering", folder / "detox", "--new-tokens", 5]
    status, out, _ = run(*given, "--explain")
    (row,) = json.loads(run(*given, "--json")[1])["generations"]
    assert status == 0
    assert out.startswith(f"Hi there{row['steered']}")
    assert "coloured by applied strength, mean over sites: 0 to 1" in out


def test_inspect_data_says_what_to_mend_and_ends_with_status_1_when_something_must_be(run: Run, folder: Path) -> None:
    sets = ["inspect-data", "--source", folder / "rude.txt", "--control", folder / "plain.txt"]
    status, out, _ = run(*sets, "--model", folder / "model")
    assert status == 0
    assert "source: 9 texts, control: 9 texts" in out
    assert "warning: style:" in out
    assert "model.layers.2" in out
    status, out, _ = run(*sets, "--held-out", folder / "plain.txt", "--target", folder / "rude.txt", "--json")
    told = json.loads(out)
    assert status == 1
    assert told["sizes"] == {"source": 9, "control": 9, "target": 9, "held-out": 9}
    assert {tuple(f["sets"]) for f in told["findings"] if f["check"] == "overlap"} >= {("control", "held-out")}


def test_fires_on_shows_each_kind_of_text_by_its_file_and_warns_where_it_should_not_fire(
    run: Run, folder: Path
) -> None:
    asked = ["fires-on", folder / "detox", "--model", folder / "model"]
    asked += ["--texts", folder / "rude.txt", "--texts", folder / "plain.txt"]
    status, out, _ = run(*asked)
    assert status == 0
    assert "rude" in out
    assert "warning: fires on plain" in out
    told = json.loads(run(*asked, "--json")[1])
    assert [kind["kind"] for kind in told["kinds"]] == ["rude", "plain"]
    assert told["kinds"][1]["auroc"]["n"] == 18


def test_selectivity_shows_what_source_loses_at_the_stated_damage_beside_no_regulator(run: Run, folder: Path) -> None:
    asked = ["selectivity", folder / "detox", "--model", folder / "model", "--source", folder / "rude.txt"]
    asked += ["--control", folder / "plain.txt"]
    status, out, err = run(*asked)
    assert status == 0
    assert "where control texts lose 0.02 nats per token" in out
    assert "times what they lose without a regulator" in out
    assert "measuring strengths" in err
    told = json.loads(run(*asked, "--json")[1])
    assert told["kinds"].keys() == {"plain"}
    assert told["kinds"]["plain"]["loss"]["mean"] == pytest.approx(0.02)
    assert [row["strength"] for row in told["curve"]] == sorted(row["strength"] for row in told["curve"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "{}/model", "--steering", "{}/detox"], "either one prompt or --file"),
        (["explain", "{}/model", "Hi", "--steering", "{}/detox", "--strength", "0"], "at 0 no token is steered"),
        (["generate", "{}/model", "Hi", "--explain"], "--explain needs --steering"),
        (["generate", "{}/model", "Hi", "--steering", "{}/detox", "--explain", "--json"], "see also: dsas explain"),
        (["inspect-data", "--source", "{}/rude.txt", "--control", "{}/plane.txt"], "plain.txt"),
        (["fires-on", "{}/detox", "--model", "{}/model", "--texts", "{}/rud.txt"], "rude.txt"),
        (["playground", "{}/model", "--steering", "{}/detox", "--strength", "0"], "a strength that is not 0"),
    ],
)
def test_bad_input_ends_with_status_2_and_a_message_that_helps(
    run: Run, folder: Path, arguments: list[str], message: str
) -> None:
    status, _, err = run(*(argument.format(folder) for argument in arguments))
    assert status == 2
    assert message in err


def test_the_public_function_and_the_page_of_a_trace_are_those_of_the_command(run: Run, folder: Path) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    trace = dsas.explain(model, tokenizer, dsas.Steering.from_pretrained(folder / "detox"), "Hi")
    told = json.loads(run("explain", folder / "model", "Hi", "--steering", folder / "detox", "--json")[1])
    assert told == json.loads(trace.to_json())
    assert trace._repr_html_().startswith("<iframe srcdoc=")
    assert trace.plot().axes
    assert list(trace.frame().token) == ["H", "i"] * 3
    assert trace.__rich__().plain.startswith("Text 1\nHi")
