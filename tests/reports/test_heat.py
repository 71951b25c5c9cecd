import re

import pytest

from dsas.errors import OptionError
from dsas.reports.heat import TokenHeat, render_heat, visible


def opacities(values: list[float], peak: float) -> list[float]:
    html = render_heat(TokenHeat("label", ["token"] * len(values), values), peak=peak)
    return [float(found) for found in re.findall(r"--heat:([\d.]+)", html)]


def test_opacity_is_the_share_of_the_peak_and_stops_at_one():
    assert opacities([0.0, 0.5, 1.0, 2.0, 3.0], peak=2.0) == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_a_peak_of_zero_colours_nothing():
    assert opacities([0.0, 0.0], peak=0.0) == [0.0, 0.0]


def test_a_token_takes_the_focus_and_tells_its_number():
    html = render_heat(TokenHeat("label", [" word"], [0.12345]), peak=1.0)
    assert 'tabindex="0" title="0.123"' in html
    assert "> word</span>" in html


@pytest.mark.parametrize(
    ("token", "shown"),
    [("\n", "¶\n"), (".\n\n", ".¶\n¶\n"), ("  ", "␣␣"), (" a", " a"), ("\t", "⇥\t"), ("\u00a0", "␣"), ("", "∅")],
)
def test_whitespace_is_visible_where_it_would_be_lost(token: str, shown: str):
    assert visible(token) == shown


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_a_value_that_has_no_place_on_the_scale_is_refused(value: float):
    with pytest.raises(OptionError, match="'site 3': expected finite values >= 0"):
        render_heat(TokenHeat("site 3", ["a"], [value]), peak=1.0)


def test_tokens_and_values_of_different_number_are_refused():
    with pytest.raises(OptionError, match="got 1 for 2"):
        render_heat(TokenHeat("site 3", ["a", "b"], [1.0]), peak=1.0)
