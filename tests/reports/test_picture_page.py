"""Pictures over strengths, with and without regulators, and the page that shows them."""

import json
import sys
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import unchecked
from pictures import OPTIONS, drawn, steered_at
from PIL import Image
from tables_page import columns_of

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

import dsas
from dsas import cli
from dsas.errors import OptionError
from dsas.model.subject import subject_of
from dsas.reports.page import Page
from dsas.reports.pictures import WITH, WITHOUT, Beside, compare_pictures, everywhere, mapped_strength, write_pictures
from dsas.testing.pipelines import tiny_pipeline
from dsas.views.pictures import as_picture, grid_figure, heat_figure

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


def test_the_verdict_tells_targets_controls_and_region_apart(pipeline: Any, tmp_path: Path) -> None:
    rule = steered_at(pipeline, "sd").rules[0]
    nothing = dsas.Steering([rule._replace(regulator=dsas.Constant(0.0))], subject_of(pipeline).identity)
    beside = Beside(control=("the sky",), target=("a blue dog",))
    compared = compare_pictures(pipeline, nothing, ["a red dog"], [1.0], DRAWING, beside=beside)
    verdict = compared.verdicts[WITH][1.0]
    assert verdict.gone is not None
    assert verdict.control is not None
    assert (verdict.gone.mean, verdict.change.mean, verdict.control.mean) == (0.0, 0.0, 0.0)
    assert verdict.noise.mean > 1
    assert "Control: kept" in verdict.lines()[1]
    assert compared.verdicts[WITHOUT][1.0].control is not None
    page = write_pictures(tmp_path, "Nothing", compared).read_text()
    for line in ("Verdict at strength 1", "control: the sky", *map(escape, verdict.lines())):
        assert line in page
    with pytest.raises(OptionError, match="expected a target prompt for each of 2 prompts, got 1"):
        compare_pictures(pipeline, nothing, ["a", "b"], [1.0], DRAWING, beside=beside)


def test_maps_are_of_the_strength_that_the_steering_has_or_that_was_asked_for(pipeline: Any) -> None:
    steering = steered_at(pipeline, "sd")
    compared = compare_pictures(pipeline, steering, ["a"], [0.0, 0.5, 1.0, 2.0], DRAWING)
    assert (compared.mapped, compared.maps[0].strength.tolist()) == (1.0, [1.0])
    assert [mapped_strength([0.0, 0.5, 2.0], own, None) for own in (0.1, 1.2, 9.0)] == [0.5, 0.5, 2.0]
    assert mapped_strength([0.0, 0.5, 2.0], 1.0, 2.0) == 2.0
    with pytest.raises(OptionError, match=r"drawn and above 0 \(0.5, 2\), got 1"):
        mapped_strength([0.0, 0.5, 2.0], 1.0, 1.0)
    with pytest.raises(OptionError, match="expected finite strengths of 0 or more, got 1, -1"):
        mapped_strength([1.0, -1.0], 1.0, None)


def test_with_both_branches_steered_a_prompt_has_the_maps_of_its_own_rows(pipeline: Any) -> None:
    steering = steered_at(pipeline, "sd")
    drawing = DRAWING._replace(branch="both")
    together = compare_pictures(pipeline, steering, ["a", "b"], [1.0], drawing)
    alone = compare_pictures(pipeline, steering, ["b"], [1.0], drawing._replace(seed=DRAWING.seed + 1))
    for one, other in zip(together.maps[1].strengths, alone.maps[0].strengths, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)
    assert len(together.maps[0].strength) == len(alone.maps[0].strength) == 1


def test_with_both_branches_steered_the_tokens_are_those_of_the_prompt_and_not_of_the_negative_one() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", "text")
    drawing = DRAWING._replace(options={**DRAWING.options, "negative_prompt": "blurry"})
    found = [
        compare_pictures(pipeline, steering, ["red dog", "sky"], [1.0], drawing._replace(branch=branch)).words
        for branch in ("conditional", "both")
    ]
    assert found[0] == found[1]


def test_all_maps_have_one_scale_from_zero_to_the_strength_asked_for(pipeline: Any) -> None:
    picture = np.full((4, 4, 3), 0.5, np.float32)
    faint, full = (
        heat_figure(picture, [np.full((4, 4), level, np.float32)], titles=["step 1"], peak=4.0) for level in (0.01, 4.0)
    )
    shown = [figure.axes[1].images[1] for figure in (faint, full)]
    assert [one.get_clim() for one in shown] == [(0.0, 4.0), (0.0, 4.0)]
    with steered_at(pipeline, "sd", regulator=dsas.Constant(0.01)).apply(pipeline, 3.0) as applied:
        given = drawn(pipeline, "sd", output_type="np")[0]
    assert applied.maps().plot(given).axes[1].images[1].get_clim() == (0.0, 3.0)


@pytest.mark.parametrize("kind", ["pil", "np", "pt", "latent"])
def test_a_map_is_drawn_over_whatever_the_pipeline_gives(pipeline: Any, kind: str) -> None:
    with steered_at(pipeline, "sd").apply(pipeline) as applied:
        picture = drawn(pipeline, "sd", output_type=kind)[0]
    shown = applied.maps().plot(picture).axes[0].images[0].get_array()
    assert shown is not None
    assert shown.shape == ((8, 8, 3) if kind == "latent" else (16, 16, 3))
    assert 0.05 < float(shown.max()) <= 1


def test_one_picture_is_the_same_in_every_form() -> None:
    colours = np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)
    floats, tensor = (colours / 255).astype(np.float32), torch.from_numpy(colours.copy()).permute(2, 0, 1)
    forms = [Image.fromarray(colours), colours, floats, tensor, tensor / 255, (tensor / 255).double(), tensor.numpy()]
    forms += [Image.fromarray(colours).convert("RGBA"), np.dstack([floats, np.ones((4, 6), np.float32)])]
    forms += [torch.from_numpy(floats)]
    for form in forms:
        assert np.allclose(as_picture(form), floats, atol=1e-6)
    assert np.allclose(as_picture((tensor / 255).bfloat16()), floats, atol=0.01)
    assert as_picture(floats[:, :, 0]).shape == (4, 6, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((1, 4, 4, 3)), "take one of a batch"),
        (torch.zeros(16, 64), "packed latents have no height and width"),
        (np.full((4, 4, 3), 2.0), "values in .0, 1. or bytes, got 2 to 2"),
        (np.full((4, 4, 3), -1.0), "values in .0, 1. or bytes, got -1 to -1"),
        (np.full((4, 4, 3), np.nan), "the pipeline has overflowed"),
        ("picture.png", "expected one picture as the pipeline gives it"),
        ([object()], "expected one picture as the pipeline gives it"),
    ],
)
def test_what_is_no_picture_is_refused(given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        as_picture(given)


@pytest.mark.parametrize("family", ["animatediff", "wan"])
def test_a_pipeline_that_draws_videos_is_refused_before_anything_runs(family: str) -> None:
    pipeline = tiny_pipeline(family)
    rule = dsas.Rule(subject_of(pipeline).sites("text")[0], dsas.Addition(torch.ones(16)), dsas.Constant(1.0))
    steering = dsas.Steering([rule], subject_of(pipeline).identity)
    pipeline.encode_prompt = None  # whatever runs would fail here
    with pytest.raises(OptionError, match=r"Pipeline draws videos, and this page compares single pictures"):
        compare_pictures(pipeline, steering, ["a"], [1.0], dsas.Drawing(steps=2))


@pytest.mark.parametrize("branch", ["conditional", "both"])
def test_at_the_text_encoders_sites_the_page_shows_which_tokens_were_steered(
    pipeline: Any, tmp_path: Path, branch: Any
) -> None:
    steering = steered_at(pipeline, "sd", "text", regulator=dsas.Constant(0.5))
    compared = compare_pictures(pipeline, steering, ["red dog", "sky"], [2.0], DRAWING._replace(branch=branch))
    first = compared.words[0][0]
    assert first.label == str(steering.rules[0].site)
    assert "".join(first.tokens).replace(" ", "").startswith("reddog")
    assert first.values == pytest.approx([1.0] * len(first.values))
    page = write_pictures(tmp_path, "Words", compared).read_text()
    assert 'title="1" style="--heat:0.500"' in page
    assert not list(tmp_path.glob("heat-*.png"))
    assert "Where: not measured" in page


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
        with pytest.raises(OptionError, match="expected one title per map"):
            unchecked(heat_figure)(picture, heats, titles=titles, peak=1.0)
    with pytest.raises(OptionError, match="expected a PNG file"):
        Page("a", "b").picture(b"GIF89a", "c")


@pytest.mark.parametrize("options", [{"prompts": []}, {"strengths": [0.0]}, {"drawing": dsas.Drawing(images=2)}])
def test_nothing_to_compare_is_refused(pipeline: Any, options: dict[str, Any]) -> None:
    given: dict[str, Any] = {"prompts": ["a"], "strengths": [1.0], "drawing": DRAWING, **options}
    with pytest.raises(OptionError, match="expected at least one prompt, a strength above 0"):
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
    tabled = ("--control", "a fish", "--table", tmp_path / "measures.jsonl")
    status, out, err = command(monkeypatch, capsys, *given, "--guidance", 3, *tabled)
    assert status == 0, err
    rows = [json.loads(line) for line in (tmp_path / "measures.jsonl").read_text().splitlines()]
    assert list(rows[0]) == columns_of("images")
    told = json.loads(out)
    measured = {name for name, value in told["verdict"].items() if value is not None}
    assert {row["measure"] for row in rows} == measured >= {"change", "control", "noise"}
    assert len({(row["regulators"], row["strength"], row["measure"]) for row in rows}) == len(rows) >= 2 * 3 * 3
    assert told["strengths"] == [0.0, 0.5, 1.0, 2.0]
    assert len(told["mean_strengths"]) == 3  # of two prompts and a control
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
