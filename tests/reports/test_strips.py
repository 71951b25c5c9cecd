from pathlib import Path

import numpy as np
import pytest

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
