"""The report of a sweep over a pipeline, whose samples are made up; what it shares with texts is tested there."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
from sweeps import Line, write_samples

from dsas.errors import TextsError
from dsas.reports.pareto import write_pareto_report

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")

N = 20
PLAN = {
    "model": "scenes, red",
    "prompts": [f"a red thing {number}" for number in range(N)],
    "series": [
        {"name": "caa + constant", "transform": "caa", "regulator": "constant", "chosen": 2.0},
        {"name": "caa + logistic", "transform": "caa", "regulator": "logistic", "chosen": 2.0},
    ],
    "command": "python benchmarks/pictures.py",
    "settings": {},
}


def cell(series: str, strength: float, *, shown: int, change: float | None = None) -> list[Line]:
    """Return the samples of one cell: `shown` pictures have the concept, those of control prompts moved by `change`."""
    head = {"series": series, "strength": strength}
    lines: list[Line] = [
        {**head, "seed": 0, "measure": "generation", "item": item, "text": "a thing", "judge": None}
        | {"scores": {"detector": float(item < shown)}}
        for item in range(N)
    ]
    if change is not None:
        row = {**head, "seed": None, "measure": "change", "kind": "one thing"}
        lines += [{**row, "item": item, "value": change + item / N} for item in range(N)]
    return lines


LINES = [
    *cell("unsteered", 0, shown=20),
    *cell("caa + constant", 2, shown=0, change=19.525),
    *cell("caa + logistic", 2, shown=0, change=4.525),
    *cell("caa + logistic", 1, shown=10, change=0.525),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_samples(tmp_path / "samples.jsonl", LINES)
    (tmp_path / "sweep.json").write_text(json.dumps(PLAN))
    return tmp_path


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as reading:
        return list(csv.DictReader(reading))


def test_concept_and_change_stand_where_texts_have_toxicity_and_perplexity(folder: Path):
    page = write_pareto_report(folder, resamples=100).read_text()
    table = {tuple(row.values())[:4]: row for row in rows(folder / "table.csv")}
    assert float(table["caa + logistic", "1.0", "concept", "ensemble"]["mean"]) == 0.5
    assert float(table["caa + constant", "2.0", "change", "one thing"]["mean"]) == pytest.approx(20)
    assert float(table["unsteered", "0.0", "change", "mean"]["mean"]) == 0
    assert {measure for _, _, measure, _ in table} == {"concept", "reduction", "change"}
    assert "change of control pictures" in page
    assert "pictures with the concept, %" in page
    assert not re.search("toxi|perplex|sentence", page)
    assert "x = 5<" in (folder / "front.svg").read_text()


def test_hypervolume_and_budget_are_of_the_change(folder: Path):
    write_pareto_report(folder, resamples=100)
    summary = {row["series"]: row for row in rows(folder / "summary.csv")}
    hypervolume = "hypervolume over change of control pictures"
    # Box: 0 to 30 of 255, concept 0 to 1. Constant reaches 0 at 20; logistic 1/2 at 1 and 0 at 5.
    assert float(summary["caa + constant"][hypervolume]) == pytest.approx(10 / 30)
    assert float(summary["caa + logistic"][hypervolume]) == pytest.approx((0.5 * 4 + 25) / 30)
    assert summary["caa + constant"]["least concept within budget at strength"] == "0.0"
    assert summary["caa + logistic"]["least concept within budget at strength"] == "2.0"
    pairs = {(row["series"], row["other"]): row for row in rows(folder / "dominance.csv")}
    assert float(pairs["caa + logistic", "caa + constant"]["probability that front dominates"]) == 1


def test_pictures_that_the_samples_name_stand_side_by_side_and_no_text_is_masked(folder: Path):
    lines = [dict(line) for line in LINES]
    for number, line in enumerate(lines):
        if line["item"] < 2 and line["strength"] != 1:
            name = line["picture"] = f"{number}.png"
            Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(folder / name)
    for item in range(2):  # the unsteered pictures of control prompts, whose change is 0
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / f"control-{item}.png")
        lines.append(
            {"series": "unsteered", "strength": 0.0, "seed": None, "measure": "change", "kind": "one thing"}
            | {"item": item, "value": 0.0, "picture": f"control-{item}.png"}
        )
    write_samples(folder / "samples.jsonl", lines)
    page = write_pareto_report(folder, resamples=100).read_text()
    assert page.count("data:image/png") == 2
    assert "Pictures of prompts that ask for the concept" in page
    assert "Pictures of one thing" in page
    (folder / "0.png").unlink()
    with pytest.raises(TextsError, match=r"0\.png: no such picture, though a sample names it"):
        write_pareto_report(folder, resamples=100)


def test_a_sweep_without_pictures_to_show_has_none(folder: Path):
    page = write_pareto_report(folder, resamples=100).read_text()
    assert "data:image/png" not in page
    assert "What the pipeline draws" not in page
