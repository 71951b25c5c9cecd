import re
import sys

import pytest

from dsas.errors import MissingExtraError, OptionError
from dsas.reports.front import FrontPoint, front_figure, front_multiples
from dsas.reports.page import Page

pytest.importorskip("matplotlib")

INF = float("inf")


def point(series: str, strength: float, x: float, y: float, y_high: float | None = None) -> FrontPoint:
    return FrontPoint(series, strength, x, x - 0.01, x + 0.01, y, y - 0.02, y + 0.02 if y_high is None else y_high)


POINTS = [
    point("constant", 0.0, 1.0, 0.3),
    point("constant", 1.0, 1.2, 0.1, INF),
    point("cost $x$ & <y>", 0.75, 1.02, 0.12),
]


def drawn(points: list[FrontPoint] = POINTS) -> str:
    return front_figure(points, x_label="perplexity", y_label="toxic share")


def test_the_same_points_give_the_same_bytes():
    assert drawn() == drawn()


def test_the_drawing_does_not_depend_on_the_settings_of_the_user():
    import matplotlib

    expected = drawn()
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert drawn() == expected


def test_series_axes_strengths_and_lines_of_reference_are_named_in_plain_text():
    svg = drawn()
    for text in ("constant", "cost $x$ &amp; &lt;y&gt;", "perplexity", "toxic share", "0.75", "unsteered", "x = 1.05"):
        assert f">{text}</text>" in svg


def test_without_a_point_of_strength_zero_nothing_is_called_unsteered():
    assert "unsteered" not in drawn([point("constant", 1.0, 1.2, 0.1)])


def test_the_drawing_has_no_background_and_fits_into_a_page():
    svg = drawn()
    assert "fill: #ffffff" not in svg
    page = Page("title", "lead")
    page.figure(svg, "caption")
    assert ">perplexity</text>" in page.html()


def test_the_drawing_leaves_pyplot_alone():
    before = "matplotlib.pyplot" in sys.modules
    drawn()
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("points", [[], [point("constant", 1.0, float("nan"), 0.1)]])
def test_points_that_cannot_be_drawn_are_refused(points: list[FrontPoint]):
    with pytest.raises(OptionError, match="expected"):
        drawn(points)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"dsas\[reports\]"):
        drawn()


def test_figures_with_shared_points_have_the_same_axes_and_colours():
    alone = front_figure([POINTS[2]], x_label="x", y_label="y")
    shared = front_figure([POINTS[2]], x_label="x", y_label="y", shared=POINTS)
    assert ("#c8590a" in alone, "#c8590a" in shared) == (False, True)  # the second colour
    assert (">1.20</text>" in alone, ">1.20</text>" in shared) == (False, True)


def test_seven_series_have_seven_colours_and_two_more_differ_from_all_by_their_marks():
    panels = {"all": [point(f"series {number}", 1.0, 1.0 + 0.01 * number, 0.1) for number in range(9)]}
    drawing = front_multiples(panels, x_label="cost", y_label="y").svg
    dots = re.findall(r'<use xlink:href="#(\w+)"[^>]*style="fill: (#\w+)', drawing)
    found = {(mark, colour) for mark, colour in dots if colour != "#767676"}
    assert len(found) == 9
    assert len({colour for _, colour in found}) == 7


def test_panels_share_axes_and_one_legend():
    panels = {"one": POINTS[:2], "two": POINTS[2:], "<3>": POINTS[:1], "four": POINTS}
    drawing = front_multiples(panels, x_label="cost", y_label="y")
    for title in ("one", "two", "&lt;3&gt;", "four"):
        assert f">{title}</text>" in drawing.svg
    assert drawing.svg.count(">constant</text>") == drawing.svg.count(">cost</text>") == 1
    assert drawing.png.startswith(b"\x89PNG")
    with pytest.raises(OptionError, match="at least one point"):
        front_multiples({}, x_label="x", y_label="y")


def test_a_strength_is_written_with_three_digits():
    svg = drawn([point("constant", 0.0444444, 1.2, 0.1), point("constant", 1000.0, 1.4, 0.3)])
    assert ">0.0444</text>" in svg
    assert ">1000</text>" in svg


def test_of_strengths_at_nearly_one_place_only_the_largest_is_written():
    near = [point("constant", strength, 1.1 + strength / 1e5, 0.2) for strength in (0.3, 0.7)]
    svg = drawn([*POINTS, *near])
    assert ">0.7</text>" in svg
    assert ">0.3</text>" not in svg
