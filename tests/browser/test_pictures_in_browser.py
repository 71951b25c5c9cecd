"""The page of `dsas images` in a real browser: the verdict, every picture, the tokens, and quiet."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import complaints, requested
from pictures import OPTIONS, steered_at

pytest.importorskip("diffusers")
pytest.importorskip("matplotlib")

import dsas
from dsas.reports.pictures import Beside, compare_pictures, write_pictures
from dsas.testing.pipelines import tiny_pipeline

pytestmark = pytest.mark.browser
HOSTILE = "<script>window.hacked = 1</script> dog"
BESIDE = Beside(control=("the sky",), target=("a blue dog", "a cat"))


def all_of(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


@pytest.mark.parametrize("sites", ["residual", "text"])
def test_the_page_says_what_was_measured_and_shows_every_picture(
    browser: Any, look: Callable[..., None], tmp_path: Path, sites: str
) -> None:
    pipeline = tiny_pipeline("sd")
    drawing = dsas.Drawing(steps=2, options=OPTIONS["sd"])
    steering = steered_at(pipeline, "sd", sites)
    compared = compare_pictures(pipeline, steering, ["a red dog", HOSTILE], [0.0, 1.0], drawing, beside=BESIDE)
    browser.get(write_pictures(tmp_path, "What it does", compared).as_uri())
    assert [one.text for one in all_of(browser, "h2")] == [
        *("Verdict at strength 1", "a red dog", HOSTILE, "control: the sky")
    ]
    words = [one.text.split(":")[0] for one in all_of(browser, "h2:first-of-type ~ p")]
    assert words[:3] == ["Concept", "Control", "Where"]
    cells = [one.text for one in all_of(browser, "tbody tr:first-child td")]
    assert cells[:2] == ["with regulators", "1"]
    assert len(all_of(browser, "tbody tr")) == 2
    per_prompt, images = {"residual": 2, "text": 1}[sites], all_of(browser, "img")
    assert len(images) == 3 * per_prompt
    assert all(browser.execute_script("return arguments[0].naturalWidth > 100", one) for one in images)
    assert bool(all_of(browser, ".token")) == (sites == "text")
    if sites == "text":
        assert {" ".join(one.text.split()) for one in all_of(browser, ".scale")} == {"0 1"}
    assert browser.execute_script("return window.hacked") is None
    for dark in (False, True):
        for shape, size in (("wide", (1280, 900)), ("phone", (390, 844))):
            look(f"images-{sites}-{'dark' if dark else 'light'}-{shape}", dark=dark, width=size[0], height=size[1])
            assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth"), shape
            box = "const box = document.querySelector('.scroll:has(table)'); return box.scrollWidth <= box.clientWidth"
            assert shape == "phone" or browser.execute_script(box), "the verdict's table is cut off"
    assert complaints(browser) == []
    assert requested(browser) == []
