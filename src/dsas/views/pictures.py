"""Pictures: a grid of them, and heat maps of applied strength over one, drawn by matplotlib.

Figures take pictures as (height, width, 3) with values in [0, 1]; `as_picture` converts whatever a pipeline returns.
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
ROUNDING = 0.01  # how far beyond [0, 1] a picture's values may lie


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


def as_picture(given: Any) -> Picture:
    """Return one picture as a pipeline gives it, by any of its output types: "pil", "np", "pt" or "latent".

    It may be a PIL image, or an array or tensor of bytes or of floats in [0, 1], with colours last as in arrays or
    first as in tensors; it may be grey, or have transparency, which is ignored. Latents (any number of channels, first)
    have no colours: they are shown as the mean over channels, in grey from their smallest value to their largest.
    Raises OptionError for a batch, for packed latents, which have no height and width, and for values outside [0, 1].
    """
    if hasattr(given, "convert"):  # an image of PIL
        return np.asarray(given.convert("RGB"), dtype=np.float32) / 255
    tensor, bytes_ = hasattr(given, "detach"), str(getattr(given, "dtype", "")).endswith("uint8")
    try:
        values = np.asarray(given.detach().float().cpu() if tensor else given).astype(np.float32)
    except (TypeError, ValueError) as error:
        raise OptionError(f"expected one picture as the pipeline gives it, got a {type(given).__name__}") from error
    if values.ndim not in (2, 3) or (values.ndim == 2 and tensor) or 0 in values.shape:
        raise OptionError(
            "expected one picture as the pipeline gives it (an image, (height, width, 3) or (3, height, width)), got "
            f"the shape {values.shape}: take one of a batch; packed latents have no height and width"
        )
    if not np.isfinite(values).all():
        raise OptionError("expected a picture of finite numbers: the pipeline has overflowed")
    values = np.atleast_3d(values) / (255 if bytes_ else 1)
    first, last = values.shape[0], values.shape[-1]
    if tensor and first in (1, 3):
        values = values.transpose(1, 2, 0)
    elif last not in ((1, 3) if tensor else (1, 3, 4)):
        values = values.transpose(1, 2, 0)
        if first not in (1, 3):
            return _as_grey(values)
    low, high = float(values.min()), float(values.max())
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise OptionError(f"expected a picture with values in [0, 1] or bytes, got {low:.3g} to {high:.3g}")
    return np.broadcast_to(values[:, :, :3], (*values.shape[:2], 3)).clip(0, 1)


def _as_grey(latent: Float[np.ndarray, "height width channel"]) -> Picture:
    values = latent.mean(-1, keepdims=True)
    low, high = values.min(), values.max()
    return np.repeat((values - low) / max(float(high - low), 1e-12), 3, axis=-1)


def heat_figure(
    picture: Any, heats: Sequence[Float[np.ndarray, "height width"]], *, titles: Sequence[str], peak: float
) -> "Figure":
    """Return the picture and, next to it, a copy under each map of strengths >= 0, coloured from 0 to `peak`.

    picture: as for `as_picture`. peak: the requested strength, so that maps of several pictures can be compared; larger
    values, where a regulator exceeds 1, have the colour of the peak, and the scale says so.
    Raises OptionError when there is no map, a title is missing, a map has another size than the picture, or the peak
    is not above 0.
    """
    picture = as_picture(picture)
    if not 0 < peak < float("inf"):
        raise OptionError(f"expected the strength that was asked for, above 0, as the peak, got {peak}")
    if not heats or len(heats) != len(titles) or any(heat.shape != picture.shape[:2] for heat in heats):
        raise OptionError(
            f"expected one title per map, and maps of {picture.shape[:2]}, got {len(titles)} titles and maps of "
            f"{[heat.shape for heat in heats]}"
        )
    figure, axes = _panels(1, 1 + len(heats))
    axes[0][0].imshow(picture, vmin=0.0, vmax=1.0)
    axes[0][0].set_title("picture", fontsize=9)
    grey = np.repeat(picture.mean(-1, keepdims=True), 3, axis=-1)
    shown = []
    for axis, heat, title in zip(axes[0][1:], heats, titles, strict=True):
        axis.imshow(grey, vmin=0.0, vmax=1.0)
        shown.append(axis.imshow(heat, cmap="inferno", vmin=0.0, vmax=peak, alpha=0.65, interpolation="nearest"))
        axis.set_title(title, fontsize=9, parse_math=False)
    above = any(float(heat.max()) > peak * (1 + 1e-4) for heat in heats)
    figure.colorbar(shown[0], ax=axes[0], label="applied strength", fraction=0.05, extend="max" if above else "neither")
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
