"""Pictures: a grid of them, and heat maps of applied strength over one, drawn by matplotlib.

Plain data comes in: a picture is (height, width, 3) with values in [0, 1].
"""

from collections.abc import Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from dsas.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = Float[np.ndarray, "height width 3"]


def grid_figure(pictures: Sequence[Sequence[Picture]], *, rows: Sequence[str], columns: Sequence[str]) -> "Figure":
    """Return pictures in rows and columns, with their names. Raises OptionError unless each row has every column."""
    if len(pictures) != len(rows) or any(len(row) != len(columns) for row in pictures):
        raise OptionError(f"expected {len(rows)} rows of {len(columns)} pictures, got {list(map(len, pictures))}")
    figure, axes = _panels(len(rows), len(columns))
    for number, row in enumerate(pictures):
        for place, picture in enumerate(row):
            axes[number][place].imshow(picture, vmin=0.0, vmax=1.0)
            if number == 0:
                axes[0][place].set_title(columns[place], fontsize=9, parse_math=False)
        axes[number][0].set_ylabel(rows[number], fontsize=9, parse_math=False)
    return figure


def heat_figure(
    picture: Picture, heats: Sequence[Float[np.ndarray, "height width"]], *, titles: Sequence[str]
) -> "Figure":
    """Return the picture, and beside it once more under each map of strengths >= 0; all maps share one scale.

    Raises OptionError when there is no map, a title is missing, or a map has another size than the picture.
    """
    if not heats or len(heats) != len(titles) or any(heat.shape != picture.shape[:2] for heat in heats):
        raise OptionError(
            f"expected a title a map, and maps of {picture.shape[:2]}, got {len(titles)} titles and maps of "
            f"{[heat.shape for heat in heats]}"
        )
    figure, axes = _panels(1, 1 + len(heats))
    peak = max(float(heat.max()) for heat in heats) or 1.0
    axes[0][0].imshow(picture, vmin=0.0, vmax=1.0)
    axes[0][0].set_title("picture", fontsize=9)
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1)
    shown = []
    for axis, heat, title in zip(axes[0][1:], heats, titles, strict=True):
        axis.imshow(grey, vmin=0.0, vmax=1.0)
        shown.append(axis.imshow(heat, cmap="inferno", vmin=0.0, vmax=peak, alpha=0.65, interpolation="nearest"))
        axis.set_title(title, fontsize=9, parse_math=False)
    figure.colorbar(shown[0], ax=axes[0], label="applied strength", fraction=0.05)
    return figure


def png_of(figure: "Figure") -> bytes:
    """Return a figure as a PNG file; the same figure gives the same bytes."""
    file = BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _panels(rows: int, columns: int) -> tuple["Figure", Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "reports") from error
    figure = Figure(figsize=(1.0 + 1.9 * columns, 0.6 + 1.9 * rows), dpi=120, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    return figure, axes
