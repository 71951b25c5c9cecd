"""Front: what steering achieves (y) against what it costs (x), a line for each series, a point for each strength.

Bars are the intervals of both axes. Points of strength 0 are the unsteered model: the first of them is drawn as a
dotted cross through the figure. The dashed line is the budget, by default x = 1.05: a perplexity at most 5 % above that
of the unsteered model.

The picture is SVG with real text in a mid-grey that is legible on white and on black, and no background. The same
points give the same bytes.

Figures to be compared share their axes, and a series has the same colour in all of them: use `shared` for separate
figures and `front_multiples` for one picture of small panels.

Limitations: it does not say which points are optimal; a point too near to a labelled one gets no label.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from dsas.errors import MissingExtraError, OptionError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BUDGET = 1.05
_GREY = "#767676"  # contrast 4.5 on white, 4.6 on black
_COLOURS = ("#2f7fc1", "#c8590a", "#12876a", "#b0559b", "#8a7a16", "#7a6fd0", "#d9414f")  # 4.2 or more on both
_MARKERS = "osD^vPX*"  # one more than colours, so that they do not repeat together
_LABEL_OFFSETS = ((5, 5), (5, -12), (-12, 5), (-12, -12))
_MARGIN = 0.08
_LABELS_APART = 0.07  # share of the lengths of the axes


class FrontPoint(NamedTuple):
    """One strength of one series, with its interval on both axes; an end of an interval may be infinite."""

    series: str
    strength: float
    x: float
    x_low: float
    x_high: float
    y: float
    y_low: float
    y_high: float


class Drawing(NamedTuple):
    """A picture in two forms: SVG without background, and PNG on white."""

    svg: str
    png: bytes


def front_figure(
    points: Sequence[FrontPoint],
    *,
    x_label: str,
    y_label: str,
    shared: Sequence[FrontPoint] = (),
    budget: float = BUDGET,
) -> str:
    """Return the figure as SVG; `shared` are points of all figures that share axes and colours.

    Raises OptionError when there are no points or one is not finite, MissingExtraError without matplotlib.
    """
    _check(points)
    with _styled() as new_figure:
        figure = new_figure(figsize=(5.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, points, shared or points, budget)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        figure.legend(loc="outside upper left", ncols=2, frameon=False)
        return _svg(figure)


def front_multiples(
    panels: Mapping[str, Sequence[FrontPoint]], *, x_label: str, y_label: str, budget: float = BUDGET
) -> Drawing:
    """Return one picture with a panel for each item, three per row, all with the same axes and colours.

    Raises OptionError when there are no panels, and where `front_figure` does.
    """
    shared = [point for points in panels.values() for point in points]
    for points in panels.values() or [[]]:
        _check(points)
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    with _styled() as new_figure:
        figure = new_figure(figsize=(4.2 * columns + 0.8, 3.4 * rows + 1.2), layout="constrained")
        handles: dict[str, Artist] = {}
        for number, (title, points) in enumerate(panels.items(), start=1):
            axes = figure.add_subplot(rows, columns, number)
            _draw(axes, points, shared, budget)
            axes.set_title(title, fontsize=12)
            handles |= {name: handle for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.supxlabel(x_label, fontsize=12)
        figure.supylabel(y_label, fontsize=12)
        figure.legend(handles.values(), handles.keys(), loc="outside upper left", ncols=2 * columns, frameon=False)
        return Drawing(_svg(figure), _png(figure))


def _check(points: Sequence[FrontPoint]) -> None:
    if not points:
        raise OptionError("expected at least one point, got none")
    for point in points:
        if not all(map(math.isfinite, (point.strength, point.x, point.y))):
            raise OptionError(f"expected finite strength, x and y, got {point}")


@contextmanager
def _styled() -> Iterator[type["Figure"]]:
    """Give matplotlib's Figure with our settings, whatever the user's are."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "reports") from error
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # pyright: ignore[reportCallIssue, reportArgumentType]
        yield Figure


def _svg(figure: "Figure") -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    stream = io.StringIO()
    FigureCanvasSVG(figure).print_svg(stream, metadata={"Date": None, "Creator": None})
    return stream.getvalue()


def _png(figure: "Figure") -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_facecolor("white")
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream, metadata={"Software": None})
    return stream.getvalue()


_STYLE = {
    "axes.edgecolor": _GREY,
    "axes.facecolor": "none",
    "axes.labelcolor": _GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "font.size": 12,
    "legend.labelcolor": _GREY,
    "svg.fonttype": "none",
    "svg.hashsalt": "dsas",
    "text.color": _GREY,
    "text.parse_math": False,
    "xtick.color": _GREY,
    "ytick.color": _GREY,
}


def _draw(axes: "Axes", points: Sequence[FrontPoint], shared: Sequence[FrontPoint], budget: float) -> None:
    x_limits = _limits([budget, *(value for point in shared for value in (point.x, point.x_low, point.x_high))])
    y_limits = _limits([value for point in shared for value in (point.y, point.y_low, point.y_high)])
    labelled: list[tuple[float, float]] = []
    for number, series in enumerate(dict.fromkeys(point.series for point in (*shared, *points))):
        line = sorted((point for point in points if point.series == series), key=lambda point: point.strength)
        if not line:
            continue
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        x, y = [point.x for point in line], [point.y for point in line]
        x_ends = [[_clipped(end, x_limits) for end in (point.x_low, point.x_high)] for point in line]
        y_ends = [[_clipped(end, y_limits) for end in (point.y_low, point.y_high)] for point in line]
        axes.plot(x, y, color=colour, marker=marker, markersize=5, label=series)
        axes.hlines(y, *zip(*x_ends, strict=True), color=colour, alpha=0.6, linewidth=1)
        axes.vlines(x, *zip(*y_ends, strict=True), color=colour, alpha=0.6, linewidth=1)
        offset = _LABEL_OFFSETS[number % len(_LABEL_OFFSETS)]
        for point in reversed(line):
            spot = (point.x / (x_limits[1] - x_limits[0]), point.y / (y_limits[1] - y_limits[0]))
            if point.strength == 0 or any(math.dist(spot, other) < _LABELS_APART for other in labelled):
                continue  # the cross shows it, or there is no room
            labelled.append(spot)
            said = f"{float(f'{point.strength:.3g}'):g}"  # three digits, without an exponent for 1000
            axes.annotate(said, (point.x, point.y), xytext=offset, textcoords="offset points", fontsize=10)
    unsteered = next((point for point in points if point.strength == 0), None)
    if unsteered is not None:
        label = None if unsteered.series == "unsteered" else "unsteered"  # otherwise the legend has it already
        axes.axhline(unsteered.y, color=_GREY, linestyle=":", linewidth=1.4, label=label, zorder=0)
        axes.axvline(unsteered.x, color=_GREY, linestyle=":", linewidth=1.4, zorder=0)
    axes.axvline(budget, color=_GREY, linestyle="--", linewidth=1, label=f"x = {budget:g}", zorder=0)
    axes.set_xlim(*x_limits)
    axes.set_ylim(*y_limits)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    finite = [value for value in values if math.isfinite(value)]
    margin = _MARGIN * (max(finite) - min(finite)) or 1.0
    return min(finite) - margin, max(finite) + margin


def _clipped(end: float, limits: tuple[float, float]) -> float:
    """Return the end of an interval, at the edge of the axis if it is infinite. NaN is not drawn."""
    return min(max(end, limits[0]), limits[1]) if not math.isnan(end) else end
