from pathlib import Path

import numpy as np
import pytest

from dsas.errors import TextsError
from dsas.reports import strips
from dsas.sweep.samples import Cell

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")


def cell(folder: Path, series: str, *, value: int, items: int) -> Cell:
    """Return a cell with a picture of one grey for each item, of prompts and of a kind of control prompts."""
    pictures = {}
    for kind in ("", "cats"):
        for item in range(items):
            pictures[kind, item] = f"{series}-{kind}-{item}.png"
            Image.fromarray(np.full((2, 2, 3), value + item, np.uint8)).save(folder / pictures[kind, item])
    return Cell(series, 1.0, (), np.zeros((1, 0, 1)), np.zeros((0, 1)), {}, {}, {}, {}, pictures)


def test_each_row_is_a_prompt_and_each_column_a_cell_and_prompts_that_a_cell_lacks_are_left_out(tmp_path, monkeypatch):
    drawn = []
    whole = strips.grid_figure

    def draw(grid, **names):
        drawn.append((grid, names))
        return whole(grid, **names)

    monkeypatch.setattr(strips, "grid_figure", draw)
    cells = {"unsteered": cell(tmp_path, "a", value=0, items=9), "caa at 2": cell(tmp_path, "b", value=100, items=7)}
    prompts = ["a very long prompt of more words than a line can hold", *(f"prompt {n}" for n in range(1, 9))]
    found = strips.picture_strips(tmp_path, cells, prompts)
    assert list(found) == ["", "cats"]
    assert all(png.startswith(b"\x89PNG") for png in found.values())
    (rows, names), (_, of_cats) = drawn
    assert [[round(float(picture.mean()) * 255) for picture in row] for row in rows] == [[n, 100 + n] for n in range(6)]
    assert names["columns"] == ["unsteered", "caa\nat 2"]
    assert names["rows"][:2] == ["a very long prompt of\nmore words than a line\ncan hold", "prompt 1"]
    assert of_cats["rows"] == [f"control {n}" for n in range(1, 7)]


def test_the_same_pictures_give_the_same_bytes(tmp_path):
    cells = {"unsteered": cell(tmp_path, "a", value=0, items=2)}
    assert strips.picture_strips(tmp_path, cells, ["x", "y"]) == strips.picture_strips(tmp_path, cells, ["x", "y"])


def test_a_picture_outside_of_the_folder_is_not_read_whatever_a_sample_names(tmp_path):
    inside = tmp_path / "sweep"
    inside.mkdir()
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).save(tmp_path / "secret.png")
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    for name in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "x/../../secret.png"):
        strange = cell(inside, "a", value=0, items=1)._replace(pictures={("", 0): name})
        with pytest.raises(TextsError, match="which is outside the folder"):
            strips.picture_strips(inside, {"unsteered": strange}, ["x"])


@pytest.mark.parametrize("name", ["no picture.png", "loop.png", "x" * 300, "a\0b"])
def test_what_is_no_picture_is_told_by_its_name(tmp_path, name):
    (tmp_path / "no picture.png").write_text("x")
    (tmp_path / "loop.png").symlink_to("loop.png")
    strange = cell(tmp_path, "a", value=0, items=1)._replace(pictures={("", 0): name})
    with pytest.raises(TextsError, match="which a sample names, is not a picture"):
        strips.picture_strips(tmp_path, {"unsteered": strange}, ["x"])
