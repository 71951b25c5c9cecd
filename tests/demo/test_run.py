"""The demo, as small as it goes, on a real model: measured once, and not measured again."""

from pathlib import Path

import pytest
import torch

from dsas.demo.run import CONDITIONS, QUICK, Machine, run_demo
from dsas.reports.estimates import summary

SIZE = QUICK._replace(prompts=4, strengths=(0.05,))


@pytest.mark.real
def test_a_second_demo_reuses_the_first_and_both_give_the_same_figures(tmp_path: Path) -> None:
    looks: list[object] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    first = run_demo(tmp_path, size=SIZE, machine=Machine(workers=1), show=looks.append, progress=False)
    assert len(first.found.cells) == 1 + len(CONDITIONS)
    assert torch.get_num_threads() == threads + 1
    torch.set_num_threads(threads)
    assert set(first.texts.prompts).isdisjoint(first.texts.tune_prompts)
    assert set(first.texts.report["Wikipedia"]).isdisjoint(first.texts.control + first.texts.target)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.glob("jobs/*")}
    second = run_demo(tmp_path, size=SIZE, machine=Machine(workers=2), show=looks.append, progress=False)
    assert second.as_dict() == first.as_dict()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("jobs/*")} == made
    assert looks[0].unsteered.startswith(" lazy b")  # pyright: ignore[reportAttributeAccessIssue]
    page = second.report.read_text()
    assert all(text in page for text in ("CAA + DSAS", "Which tokens were steered", "What the model says"))
    lines = summary(second.found, second.chosen)
    assert lines[0] == "unsteered at strength 0"
    assert sum(line.startswith("  selectivity: source texts lose") for line in lines) == len(CONDITIONS)
    assert set(first.texts.held_out_source).isdisjoint(first.texts.source + first.texts.control)
