"""Views: a table, a figure, colours in the terminal and a page, all from the same plain data."""

import base64
import hashlib
import io
import json
import re
import sys
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from dsas.errors import MissingExtraError, OptionError
from dsas.views.explained import Choice, Comparison, Explained, NextTokens
from dsas.views.explanation import explanation_html, framed
from dsas.views.figure import strength_figure
from dsas.views.table import frame
from dsas.views.terminal import coloured, styled

VALUES = torch.tensor([[0.0, 0.2, 0.4], [0.1, 0.3, 0.5]])
NEXT = NextTokens((0.0, 0.5, 1.0), ((Choice("a", 0.5),),) * 3, ((Choice("b", 0.25),),) * 3)


def text(**changes: Any) -> Explained:
    values = {"strength": VALUES, "regulator": 2 * VALUES, "dose": VALUES / 10}
    return Explained("Text 1", ("A", " [b]", "\n</script>"), ("s.0", "s.1"), 0.5, values)._replace(**changes)


def data_of(page: str) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page)
    assert found is not None
    return json.loads(found[1])


def test_the_table_has_a_line_a_text_token_and_site_with_all_that_was_measured() -> None:
    table = frame([text(next_tokens=NEXT), text(next_tokens=NEXT)])
    assert list(table) == ["row", "position", "token", "site", "strength", "regulator", "dose", "kl"]
    assert len(table) == 12
    line = table[(table.row == 1) & (table.position == 2) & (table.site == "s.1")].iloc[0]
    assert (line.token, line.kl) == ("\n</script>", 1.0)
    assert (line.strength, line.regulator, line.dose) == pytest.approx((0.5, 1.0, 0.05))


def test_the_figure_shows_the_strengths_and_names_tokens_while_they_can_be_read() -> None:
    axes = strength_figure(text()).axes[0]
    np.testing.assert_allclose(np.asarray(axes.images[0].get_array()), VALUES.numpy())
    assert [label.get_text() for label in axes.get_yticklabels()] == ["s.0", "s.1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["A", " [b]", r"\n</script>"]
    long = strength_figure(text(tokens=("$x$",) * 99, values={"strength": torch.zeros(2, 99)}))
    assert "$x$" not in [label.get_text() for label in long.axes[0].get_xticklabels()]


@pytest.mark.parametrize(
    ("view", "package"), [(lambda: frame([text()]), "pandas"), (lambda: strength_figure(text()), "matplotlib.figure")]
)
def test_without_its_library_a_view_names_the_extra(view: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"dsas\[reports\]"):
        view()


def test_in_the_terminal_hotter_tokens_are_darker_and_the_hottest_underlined() -> None:
    shown = coloured([text()])
    assert shown.plain.startswith("Text 1\nA [b]\n</script>")
    assert "0 to 0.45" in shown.plain
    cold, warm, hot = (styled(value, 1.0) for value in (0.0, 0.3, 0.9))
    assert cold.bgcolor is None
    assert (warm.underline, hot.underline) == (False, True)
    assert warm.bgcolor is not None
    assert hot.bgcolor is not None
    assert sum(hot.bgcolor.get_truecolor()) < sum(warm.bgcolor.get_truecolor())
    assert styled(5.0, 1.0) == styled(1.0, 1.0)
    assert styled(1.0, 0.0) == styled(0.0, 0.0)
    console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(shown)
    assert console.file.getvalue().count("\x1b[") > 4  # pyright: ignore[reportAttributeAccessIssue]


def test_the_page_holds_every_value_to_a_65535th_of_the_largest() -> None:
    comparison = Comparison(1, ("x", "y"), 0)
    (packed,) = data_of(explanation_html([text(next_tokens=NEXT, comparison=comparison)], title="t"))
    for name, values in text().values.items():
        shares = np.frombuffer(base64.b64decode(packed["values"][name]["data"]), dtype="<u2").reshape(2, 3)
        peak = packed["values"][name]["peak"]
        np.testing.assert_allclose(shares / 65535 * peak, values.numpy(), atol=peak / 65535)
    assert (packed["asked"], packed["sites"], packed["tokens"]) == (0.5, ["s.0", "s.1"], list(text().tokens))
    assert packed["next"] == {"kl": [0.0, 0.5, 1.0], "before": [[["a", 0.5]]] * 3, "after": [[["b", 0.25]]] * 3}
    assert packed["comparison"] == comparison._asdict() | {"unsteered": ["x", "y"]}


def test_the_page_allows_its_own_style_and_script_and_nothing_else() -> None:
    page = explanation_html([text(label="<i>&")], title="<b>&")
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)
    assert policy is not None
    for kind, content in (
        ("style", re.findall(r"<style>(.*?)</style>", page, re.S)),
        ("script", re.findall(r"<script>(.*?)</script>", page, re.S)),
    ):
        digest = base64.b64encode(hashlib.sha256(content[0].encode()).digest()).decode()
        assert len(content) == 1
        assert f"{kind}-src 'sha256-{digest}'" in policy[1]
    assert policy[1].startswith("default-src 'none'; ")
    assert page.count("<script") == page.count("</script>") == 2  # data and program, whatever the tokens say
    assert "<b>&<" not in page
    assert not re.search(r"https?:|@import|url\(", page)


def test_all_text_on_the_page_has_a_contrast_of_4_and_a_half_in_light_and_dark() -> None:
    style = explanation_html([text()], title="t")
    for block in re.findall(r"\{ (?:color-scheme: light dark; )?(--paper.*?)\}", style, re.S):
        colours = dict(re.findall(r"--(\w+): (#\w+|\d+ \d+ \d+)", block))
        for ink, ground in (("ink", "paper"), ("ink", "hot"), ("soft", "paper"), ("soft", "panel"), ("ink", "panel")):
            assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground, block)


def contrast(one: str, other: str) -> float:
    """Return the ratio that WCAG 2 defines."""

    def luminance(colour: str) -> float:
        if colour.startswith("#"):
            digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
            parts = [int(digits[i : i + 2], 16) for i in (0, 2, 4)]
        else:
            parts = [int(part) for part in colour.split()]
        linear = [p / 255 / 12.92 if p / 255 <= 0.03928 else ((p / 255 + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lights = sorted((luminance(one), luminance(other)))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


def test_a_frame_for_notebooks_holds_the_page_as_an_attribute_and_keeps_it_to_itself() -> None:
    shown = framed('<p class="a">&amp;</p>')
    assert 'srcdoc="&lt;p class=&quot;a&quot;&gt;&amp;amp;&lt;/p&gt;"' in shown
    assert 'sandbox="allow-scripts"' in shown


@pytest.mark.parametrize("texts", [[], [text(), text(sites=("s.0", "other"))]])
def test_a_page_without_texts_or_with_differing_sites_is_refused(texts: list[Explained]) -> None:
    with pytest.raises(OptionError, match="the same sites in all"):
        explanation_html(texts, title="t")
