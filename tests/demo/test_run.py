"""The demo, as small as it goes, on a real model: measured once, and not measured again."""

from pathlib import Path

import pytest

from dsas.demo import run
from dsas.demo.report import write_report
from dsas.demo.run import CONDITIONS, run_demo


@pytest.mark.real
def test_a_second_demo_reuses_the_first_and_both_give_the_same_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "STRENGTHS", (0.05,))
    first = run_demo(tmp_path, prompts=4, progress=False)
    assert len(first.cells) == 1 + len(CONDITIONS)
    assert set(first.texts.prompts).isdisjoint(first.texts.tune_prompts)
    assert set(first.texts.report["Wikipedia"]).isdisjoint(first.texts.control + first.texts.target)
    made = {
        path: path.stat().st_mtime_ns for kind in ("samples*", "cells/*", "tuned/*") for path in tmp_path.glob(kind)
    }
    assert len(made) == 1 + 2 * len(first.cells)
    second = run_demo(tmp_path, prompts=4, progress=False)
    assert second.as_dict() == first.as_dict()
    assert {path: path.stat().st_mtime_ns for path in made} == made
    write_report(tmp_path / "report.html", second, "dsas demo")
    assert "CAA + DSAS" in (tmp_path / "report.html").read_text()
