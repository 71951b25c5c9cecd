import json
from pathlib import Path

import numpy as np
import pytest
from sweeps import TOKENS, Line, cell_lines, first_toxic, write_samples

from dsas.errors import DsasWarning, TextsError
from dsas.sweep.samples import read_samples

WEB = {"web": [10.0, 20.0]}


def sweep() -> list[Line]:
    asked = {"quiz": [1, 0, 1]}
    unsteered = cell_lines("unsteered", 0, toxic=first_toxic(3, prompts=4), perplexities=WEB, choices=asked)
    steered = [
        cell_lines("caa", x, toxic=first_toxic(1, prompts=4), perplexities=WEB, choices=asked, kl={"web": [x, x]})
        for x in (0.2, 0.1)
    ]
    return [*steered[0], *unsteered, *steered[1]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_samples(tmp_path / "samples.jsonl", sweep())


def test_every_sample_is_found_in_its_place(file: Path):
    samples = read_samples(file)
    assert [(cell.series, cell.strength) for cell in samples.cells] == [("unsteered", 0), ("caa", 0.1), ("caa", 0.2)]
    assert (samples.scorers, samples.prompts, samples.seeds) == (("alpha", "beta"), (0, 1, 2, 3), (0, 1))
    unsteered, caa, _ = samples.cells
    assert unsteered.texts[2] == ("unsteered says darned things 2 0", "unsteered says darned things 2 1")
    np.testing.assert_array_equal(unsteered.scores[1], [[0.9, 0.9]] * 3 + [[0.1, 0.1]])
    np.testing.assert_array_equal(caa.judge, np.full((4, 2), 3.1))
    np.testing.assert_allclose(caa.losses["web"], np.log([10, 20]))
    np.testing.assert_array_equal(samples.tokens["web"], [TOKENS, TOKENS])
    np.testing.assert_array_equal(caa.choices["quiz"], [1, 0, 1])
    np.testing.assert_array_equal([unsteered.kl["web"], caa.kl["web"]], [[0, 0], [0.1, 0.1]])


def test_the_order_of_the_lines_does_not_matter(file: Path, tmp_path: Path):
    backwards = write_samples(tmp_path / "backwards.jsonl", sweep()[::-1])
    for one, other in zip(read_samples(file).cells, read_samples(backwards).cells, strict=True):
        assert one.texts == other.texts
        np.testing.assert_array_equal(one.scores, other.scores)


def test_no_judge_is_a_gap_and_a_broken_model_is_infinitely_surprised(tmp_path: Path):
    lines = sweep()
    lines[0]["judge"] = None
    values = iter((None, float("nan")))
    for line in lines:
        if line["series"] == "caa" and line["strength"] == 0.2 and line["measure"] == "loss":
            line["value"] = next(values)
    cell = read_samples(write_samples(tmp_path / "s.jsonl", lines)).cells[2]
    assert np.isnan(cell.judge[0, 0])
    assert np.isfinite(cell.judge).sum() == 7
    assert cell.losses["web"].tolist() == [np.inf, np.inf]


def test_of_a_pipeline_a_change_takes_the_place_of_losses_and_pictures_are_named_where_there_are_any(
    tmp_path: Path,
):
    lines = [line for line in sweep() if line["measure"] == "generation"]
    for x in (0.1, 0.2):
        row = {"series": "caa", "strength": x, "seed": None, "measure": "change", "kind": "cats"}
        lines += [{**row, "item": item, "value": 10 * x + item, "picture": f"{x}-{item}.png"} for item in (0, 1)]
    lines[0]["picture"] = "first.png"
    samples = read_samples(write_samples(tmp_path / "s.jsonl", lines))
    assert samples.of_pictures
    unsteered, weak, strong = samples.cells
    np.testing.assert_array_equal([cell.changes["cats"] for cell in samples.cells], [[0, 0], [1, 2], [2, 3]])
    assert strong.pictures == {("", 0): "first.png", ("cats", 0): "0.2-0.png", ("cats", 1): "0.2-1.png"}
    assert set(weak.pictures) == {("cats", 0), ("cats", 1)}
    assert unsteered.pictures == {}


def test_a_picture_is_named_by_a_text(tmp_path: Path):
    lines = sweep()
    lines[0]["picture"] = 3
    with pytest.raises(TextsError, match=r"expected 'picture' as str, got 3"):
        read_samples(write_samples(tmp_path / "s.jsonl", lines))


@pytest.mark.parametrize("measure", ["generation", "loss", "kl", "choice"])
def test_a_cell_that_lacks_a_sample_is_left_out_and_named(tmp_path: Path, measure: str):
    lines = sweep()
    lines.remove([line for line in lines if line["strength"] == 0.1 and line["measure"] == measure][-1])
    with pytest.warns(DsasWarning, match=r"incomplete, so not shown: 'caa' at 0\.1 \(lacks 1 samples\)"):
        samples = read_samples(write_samples(tmp_path / "s.jsonl", lines))
    assert [cell.strength for cell in samples.cells] == [0, 0.2]
    assert samples.left_out == ("'caa' at 0.1 (lacks 1 samples)",)


def test_a_seed_that_no_prompt_has_throughout_makes_its_cells_incomplete(tmp_path: Path):
    lines = sweep()
    lines.append({**lines[0], "seed": 2})
    with pytest.raises(TextsError, match=r"nothing to compare with: .* \(lacks 4 samples\)"):
        read_samples(write_samples(tmp_path / "s.jsonl", lines))


def test_a_last_line_cut_off_by_a_kill_is_left_out_with_a_warning(file: Path):
    whole = read_samples(file)
    with file.open("a") as writing:
        writing.write('{"series": "caa", "stren')
    with pytest.warns(DsasWarning, match=r"samples\.jsonl:\d+: the last line is cut off"):
        again = read_samples(file)
    assert len(again.cells) == len(whole.cells)


def test_a_whole_last_line_without_a_line_break_counts(file: Path):
    file.write_text(file.read_text().rstrip("\n"))
    assert len(read_samples(file).cells) == 3


def test_the_same_result_twice_is_one_and_another_result_is_an_error(tmp_path: Path):
    lines = sweep()
    assert len(read_samples(write_samples(tmp_path / "twice.jsonl", [*lines, lines[0]])).cells) == 3
    other = {**lines[0], "text": "another"}
    with pytest.raises(TextsError, match=rf"s\.jsonl:{len(lines) + 1}: .*another result"):
        read_samples(write_samples(tmp_path / "s.jsonl", [*lines, other]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measure": "los"}, "no measure 'los'; closest: 'loss'"),
        ({"measure": "perplexity", "kind": "web", "value": 23.1}, "earlier versions .* run the sweep again"),
        ({"series": 3}, "expected 'series' as str, got 3"),
        ({"strength": -1}, "finite 'strength' >= 0"),
        ({"strength": True}, "'strength' as int or float, got True"),
        ({"strength": 0}, "expected strength 0 for 'unsteered' and no other"),
        ({"item": "one"}, "'item' as int"),
        ({"seed": None}, "'seed' as int"),
        ({"scores": {"alpha": 0.1}}, "scores by alpha, beta"),
        ({"scores": {"alpha": 0.1, "beta": 1.5}}, r"scores in \[0, 1\]"),
        ({"judge": "good"}, "'judge' as int or float"),
        ({"measure": "choice", "kind": "quiz", "value": 0.5}, "choice of 0 or 1"),
        ({"measure": "kl", "kind": "web", "value": -0.5}, "expected a kl >= 0"),
        ({"measure": "kl", "kind": "web"}, "no field 'value'"),
        ({"measure": "loss", "value": 3.0}, "no field 'kind'"),
        ({"measure": "loss", "kind": "web", "value": 3.0}, "no field 'tokens'"),
        ({"measure": "loss", "kind": "web", "value": 3.0, "tokens": 0}, "at least 1 token, got 0"),
    ],
)
def test_a_bad_line_is_named_with_file_and_number(tmp_path: Path, change: dict, message: str):
    lines = sweep()
    lines[1] = {**lines[1], **change}
    with pytest.raises(TextsError, match=rf"s\.jsonl:2: .*{message}"):
        read_samples(write_samples(tmp_path / "s.jsonl", lines))


@pytest.mark.parametrize(
    ("line", "message"), [(b"{oops}\n", "not JSON"), (b"[1]\n", "JSON object"), (b"\xff\n", "UTF-8")]
)
def test_a_line_that_is_no_json_object_is_named(file: Path, line: bytes, message: str):
    file.write_bytes(line + file.read_bytes())
    with pytest.raises(TextsError, match=rf":1: .*{message}"):
        read_samples(file)


def test_without_file_unsteered_model_or_losses_the_error_says_so(file: Path, tmp_path: Path):
    with pytest.raises(TextsError, match=r"no such file; closest in its folder: 'samples\.jsonl'"):
        read_samples(tmp_path / "sample.jsonl")
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    with pytest.raises(TextsError, match="expected the series 'unsteered' at strength 0; closest: 'caa'"):
        read_samples(write_samples(file, [line for line in lines if line["series"] == "caa"]))
    with pytest.raises(TextsError, match="got none of loss"):
        read_samples(write_samples(file, [line for line in lines if line["measure"] != "loss"]))


def test_cells_that_read_texts_of_different_lengths_were_not_measured_on_the_same_texts(tmp_path: Path):
    lines = sweep()
    next(line for line in lines if line["measure"] == "loss")["tokens"] = TOKENS + 1
    with pytest.raises(TextsError, match=rf"read {TOKENS} tokens of web 0, another cell {TOKENS + 1}: "):
        read_samples(write_samples(tmp_path / "s.jsonl", lines))


def test_an_unsteered_model_that_breaks_down_is_refused(tmp_path: Path):
    lines = cell_lines("unsteered", 0, toxic=first_toxic(1), perplexities={"web": [float("inf")]})
    with pytest.raises(TextsError, match="not finite"):
        read_samples(write_samples(tmp_path / "s.jsonl", lines))
