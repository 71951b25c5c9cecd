"""Strips: the pictures that a sweep's samples name, a row per prompt and a column per cell, as PNG files for a page.

Limitations: a prompt without a picture in some cell is not shown.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from dsas.errors import MissingExtraError, TextsError, shown
from dsas.sweep.samples import Cell
from dsas.views.pictures import grid_figure, png_of

ROWS = 6


def picture_strips(folder: Path, cells: Mapping[str, Cell], prompts: Sequence[str]) -> dict[str, bytes]:
    """Return a grid of pictures per kind; `cells` are keyed by the title of their column, prompts name the rows.

    Kinds of control prompts are named by number, since the samples do not hold their texts.
    Raises TextsError for a picture that is missing from the folder or unreadable, MissingExtraError without matplotlib
    or pillow.
    """
    first, *others = cells.values()
    places = [place for place in first.pictures if all(place in cell.pictures for cell in others)]
    strips = {}
    for kind in dict.fromkeys(kind for kind, _ in places):
        items = sorted(item for of, item in places if of == kind)[:ROWS]
        rows = [[_picture(folder, cell.pictures[kind, item]) for cell in cells.values()] for item in items]
        names = [f"control {item + 1}" if kind else _wrapped(prompts[item]) for item in items]
        columns = [title.replace(" at ", "\nat ") for title in cells]
        strips[kind] = png_of(grid_figure(rows, rows=names, columns=columns))
    return strips


def _picture(folder: Path, name: str) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "diffusion") from error
    try:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder.resolve()):
            raise TextsError(f"{folder}: a sample names the picture {shown(name)}, which is outside the folder")
        if not file.is_file():
            raise TextsError(f"{folder / name}: no such picture, though a sample names it")
        return np.asarray(Image.open(file).convert("RGB")) / 255
    except (OSError, ValueError, RuntimeError, Image.DecompressionBombError) as error:
        if isinstance(error, TextsError):
            raise
        raise TextsError(f"{folder}: {shown(name)}, which a sample names, is not a picture: {error}") from error


def _wrapped(text: str, width: int = 24) -> str:
    lines = [""]
    for word in text.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return "\n".join(lines)
