"""Pictures over strengths, with and without regulators, and the page that shows them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import unchecked
from pictures import OPTIONS, drawn, steered_at

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

import dsas
from dsas import cli
from dsas.errors import OptionError
from dsas.reports.page import Page
from dsas.reports.pictures import WITH, WITHOUT, compare_pictures, everywhere, write_pictures
from dsas.testing.pipelines import tiny_pipeline
from dsas.views.pictures import grid_figure, heat_figure

DRAWING = dsas.Drawing(steps=2, options=OPTIONS["sd"], seed=3, batch_size=2)


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return tiny_pipeline("sd")


def test_strength_zero_is_the_unsteered_picture_and_each_row_is_its_own_steering(pipeline: Any, tmp_path: Path) -> None:
    steering = steered_at(pipeline, "sd")
    prompts = ["a", "b", "c"]
    compared = compare_pictures(pipeline, steering, prompts, [0.0, 1.0], DRAWING)
    plain = np.concatenate(
        [
            drawn(pipeline, "sd", some, seeds=seeds, output_type="np")
            for some, seeds in ((["a", "b"], [3, 4]), (["c"], [5]))
        ]
    )
    assert np.array_equal(compared.pictures[WITH][0], plain)
    assert np.array_equal(compared.pictures[WITHOUT][0], plain)
    assert not np.array_equal(compared.pictures[WITH][1], compared.pictures[WITHOUT][1])
    assert {rule.regulator.name for rule in everywhere(steering).rules} == {"constant"}
    assert [len(maps.strength) for maps in compared.maps] == [1, 1, 1]
    page = write_pictures(tmp_path / "new", "What it does", compared)
    assert page.read_text().count("data:image/png;base64,") == 6
    assert sorted(file.name for file in page.parent.iterdir())[:2] == ["grid-1.png", "grid-2.png"]


def test_a_map_is_drawn_over_its_picture(pipeline: Any) -> None:
    with steered_at(pipeline, "sd").apply(pipeline) as applied:
        picture = drawn(pipeline, "sd", output_type="np")[1]
    figure = applied.maps().plot(picture, 1)
    assert [axis.get_title() for axis in figure.axes] == ["picture", "step 1", "step 2", ""]
    over = figure.axes[1].images[1].get_array()
    assert np.allclose(over, applied.maps().heat(16, 16, step=0)[1].numpy())
    with pytest.raises(OptionError, match="expected an image from 0 to 1, got 2"):
        applied.maps().plot(picture, 2)


def test_figures_refuse_what_does_not_fit_together() -> None:
    picture = np.zeros((4, 4, 3), dtype=np.float32)
    with pytest.raises(OptionError, match="expected 1 rows of 2 pictures"):
        grid_figure([[picture]], rows=["a"], columns=["b", "c"])
    for heats, titles in (([], []), ([np.zeros((4, 4), dtype=np.float32)], []), ([np.zeros((4, 5))], ["a"])):
        with pytest.raises(OptionError, match="expected a title a map"):
            unchecked(heat_figure)(picture, heats, titles=titles)
    with pytest.raises(OptionError, match="expected a PNG file"):
        Page("a", "b").picture(b"GIF89a", "c")


@pytest.mark.parametrize("options", [{"prompts": []}, {"strengths": [0.0]}, {"drawing": dsas.Drawing(images=2)}])
def test_nothing_to_compare_is_refused(pipeline: Any, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"prompts": ["a"], "strengths": [1.0], "drawing": DRAWING, **options}
    with pytest.raises(OptionError, match="expected a prompt or more, a strength above 0"):
        compare_pictures(pipeline, steered_at(pipeline, "sd"), given["prompts"], given["strengths"], given["drawing"])


def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["dsas", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


def test_images_writes_a_page_from_stored_pipeline_and_steering(
    pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline.save_pretrained(tmp_path / "tiny")
    steered_at(pipeline, "sd").save_pretrained(tmp_path / "steering")
    given = ["images", tmp_path / "tiny", tmp_path / "steering", "--prompt", "a dog", "--prompt", "a cat", "--steps", 2]
    given += ["--options", json.dumps(OPTIONS["sd"]), "--device", "cpu", "--out", tmp_path / "out", "--json"]
    status, out, err = command(monkeypatch, capsys, *given, "--guidance", 3)
    assert status == 0, err
    told = json.loads(out)
    assert told["strengths"] == [0.0, 0.5, 1.0, 2.0]
    assert len(told["mean_strengths"]) == 2
    assert Path(told["page"]).is_file()
    for option, value, message in (
        ("--options", "[1]", "must be a JSON object"),
        ("--options", "{", "must be a JSON object"),
        ("--branch", "none", "'none' is not one of 'conditional', 'unconditional', 'both'"),
        ("--device", "nowhere", "device 'nowhere' cannot be used"),
    ):
        status, _, err = command(monkeypatch, capsys, *given, option, value)
        assert (status, message in err) == (2, True), err
    status, _, err = command(monkeypatch, capsys, "images", tmp_path / "none", tmp_path / "steering", "--prompt", "a")
    assert status == 2
    assert "no model could be loaded from" in err
    assert "a folder with a diffusers pipeline, or a hub id)" in err
    assert torch.is_grad_enabled()
