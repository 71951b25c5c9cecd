"""The selectivity in a report, from curves that follow a law, so that every number in it is known."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from sweeps import cell_lines, first_toxic, write_samples

from dsas.errors import TextsError
from dsas.evaluation.loss_curve import Curve, Losses
from dsas.reports.estimates import read_sweep, summary
from dsas.reports.loss_curves import loss_panels, selectivity_columns
from dsas.reports.pareto import write_pareto_report
from dsas.sweep.curves import Curves

pytest.importorskip("matplotlib")

STRENGTHS = (0.05, 0.1, 0.2, 0.4, 0.8)
NARROW = "\N{NO-BREAK SPACE}"


def curve(effect: float) -> Curve:
    """Return losses of effect x strength on source and of 2 and 4 x strength squared on web and news."""
    losses = [
        Losses(np.full(5, effect * at), {"web": np.full(4, 2 * at**2), "news": np.full(4, 4 * at**2)})
        for at in STRENGTHS
    ]
    return Curve(STRENGTHS, tuple(losses))


CURVES = Curves(
    0.02, {"plain": curve(0.5), "gated": curve(1.5)}, {"plain": "plain", "gated": "plain"}
)  # 3 s^2 = 0.02 at s = 0.0816


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    lines = [
        *cell_lines("unsteered", 0, toxic=first_toxic(9), perplexities={"web": [10.0, 20.0]}),
        *cell_lines("plain", 0.1, toxic=first_toxic(6), perplexities={"web": [10.2, 20.4]}),
        *cell_lines("gated", 0.1, toxic=first_toxic(3), perplexities={"web": [10.1, 20.2]}),
    ]
    write_samples(tmp_path / "samples.jsonl", lines)
    series = [
        {"name": name, "transform": "caa", "regulator": regulator, "chosen": 0.1}
        for name, regulator in (("plain", "constant"), ("gated", "logistic"))
    ]
    about = {"model": "tiny", "prompts": ["a prompt"] * 20, "series": series, "command": "dsas", "settings": {}}
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    (tmp_path / "curves.json").write_text(json.dumps(CURVES.as_dict()))
    return tmp_path


def test_each_series_has_its_nats_and_its_ratio_in_page_table_and_headline(folder: Path) -> None:
    page = write_pareto_report(folder, resamples=50, show_words=True).read_text()
    for text in (">nats at 0.02<", f">0.122 [0.122,{NARROW}0.122]<", f">3.00 [3.00,{NARROW}3.00]<"):
        assert text in page
    found = read_sweep(folder, resamples=50).found
    lines = summary(found, {"plain": 0.1, "gated": 0.1})
    told = [line for line in lines if "selectivity" in line]
    assert [line for line in summary(found, {"plain": None, "gated": None}) if "selectivity" in line] == told
    assert told[1] == (
        f"  selectivity: source texts lose 0.122 [0.122,{NARROW}0.122] nats at 0.02, 3.00 [3.00,{NARROW}3.00] times "
        "the constant regulator's"
    )
    header, _, _, gated = (folder / "summary.csv").read_text().splitlines()
    row = dict(zip(header.split(","), gated.split(","), strict=True))
    assert float(row["nats at 0.02"]) == pytest.approx(1.5 * (0.02 / 3) ** 0.5, rel=1e-3)
    assert float(row["nats at 0.02 over constant"]) == pytest.approx(3.0)


def test_the_figure_has_a_panel_for_each_kind_and_a_line_for_each_series_up_to_twice_the_damage(folder: Path) -> None:
    found = read_sweep(folder, resamples=50).found.selectivity
    panels = loss_panels(found, resamples=50, seed=0)
    assert list(panels) == ["web", "news"]
    gated = [(one.strength, one.x, one.y) for one in panels["news"] if one.series == "gated"]
    assert gated == [(0, 0, 0), *(pytest.approx((at, 4 * at**2, 1.5 * at)) for at in (0.05, 0.1, 0.2))]
    page = write_pareto_report(folder, resamples=50, show_words=True).read_text()
    (figure,) = re.findall(r'<svg[^>]*aria-label="Loss on source texts.*?</svg>', page, re.DOTALL)
    for text in ("web", "news", "plain", "gated", "x = 0.02", "source texts lose, nats per token"):
        assert f">{text}</text>" in figure


def test_what_was_not_measured_or_not_reached_is_said_and_nothing_is_made_up(folder: Path) -> None:
    short = Curve(STRENGTHS[:1], curve(1.0).losses[:1])
    (folder / "curves.json").write_text(json.dumps(Curves(0.02, {"plain": short}, {"plain": "plain"}).as_dict()))
    found = read_sweep(folder, resamples=50).found
    assert set(selectivity_columns(found.selectivity["plain"]).values()) == {"not reached"}
    assert "no measured strength costs control texts 0.02 nats" in "\n".join(summary(found, {"plain": 0.1}))
    assert "not reached" in write_pareto_report(folder, resamples=50, show_words=True).read_text()
    (folder / "curves.json").unlink()
    page = write_pareto_report(folder, resamples=50, show_words=True).read_text()
    assert page.count(">not measured<") == 4  # two columns, two series
    assert "Not measured: it needs held-out source texts" in page


def test_curves_of_another_sweep_are_refused(folder: Path) -> None:
    (folder / "curves.json").write_text(json.dumps(CURVES._replace(against={"gatd": "plain"}).as_dict()))
    with pytest.raises(TextsError, match="no series 'gatd'; closest: 'gated'"):
        read_sweep(folder)
