"""The page in a real browser: what is there, what keys, pointer and slider do, and that it stays quiet and quick."""

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from browser.conftest import complaints, requested
from makers import random_steering, templated

import dsas
from dsas.explaining.explanation import write_explanation
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.views.explained import Explained
from dsas.views.explanation import explanation_html, framed

pytestmark = pytest.mark.browser
HOSTILE = "</script><script>window.hacked = 1</script> <b>bold</b>"


@pytest.fixture
def trace() -> dsas.Trace:
    model = tiny_model()
    prompts = ["The library opens at nine. You are a fool.", HOSTILE]
    return dsas.explain(
        model, tiny_tokenizer(), random_steering(model), prompt=prompts, generate=12, strength=2.0, next_tokens=3
    )


@pytest.fixture
def page(browser: Any, trace: dsas.Trace, tmp_path: Path) -> Any:
    write_explanation(tmp_path / "explain.html", trace)
    browser.get((tmp_path / "explain.html").as_uri())
    return browser


def test_a_conversation_stands_turn_by_turn_and_what_counts_is_underlined(browser: Any, tmp_path: Path) -> None:
    model = tiny_model(vocab_size=300)
    chat = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    talk = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Yes."}]
    tokenizer = templated(chat, specials=("<s>", "</s>"))
    write_explanation(tmp_path / "talk.html", dsas.explain(model, tokenizer, random_steering(model), talk))
    browser.get((tmp_path / "talk.html").as_uri())
    assert [one.text.split(":")[0] for one in all_of(browser, "h3.turn")] == ["user", "assistant"]
    lines = [one.get_property("textContent") for one in all_of(browser, "p.tokens")]
    assert lines == ["<user>Why?</s>", "<assistant>Yes.</s>"]
    assert "".join(one.get_property("textContent") for one in all_of(browser, ".counted")) == "Yes."
    assert complaints(browser) == []


def all_of(page: Any, selector: str) -> list[Any]:
    return page.find_elements("css selector", selector)


def one_of(page: Any, selector: str) -> Any:
    return page.find_element("css selector", selector)


def slide(page: Any, value: int) -> None:
    page.execute_script(
        "const s = document.getElementById('strength'); s.value = arguments[0]; s.dispatchEvent(new Event('input'))",
        value,
    )


def heat(page: Any, token: int) -> float:
    """Return how opaque a token's background is."""
    colour = page.execute_script(
        "return getComputedStyle(document.querySelectorAll('.token')[arguments[0]]).backgroundColor", token
    )
    return float(colour.split("/")[1].rstrip(") ")) if "/" in colour else float(colour.strip("rgba()").split(",")[3])


def test_every_text_has_its_tokens_both_continuations_and_a_map_and_nothing_was_asked_of_a_network(
    page: Any, trace: dsas.Trace, look: Callable[..., None]
) -> None:
    assert [s.get_attribute("aria-label") for s in all_of(page, "section")] == ["Text 1", "Text 2"]
    assert len(all_of(page, ".token")) == int(trace.real.sum())
    assert len(all_of(page, "canvas")) == len(all_of(page, ".unsteered")) == 2
    assert len(all_of(page, ".steered .first")) == len(all_of(page, ".unsteered .first")) == 2
    assert all("First difference: token" in told.text for told in all_of(page, ".difference"))
    assert page.execute_script("return window.hacked") is None
    assert all_of(page, "section b") == []
    for dark in (False, True):
        for shape, size in (("wide", (1280, 900)), ("phone", (390, 844))):
            look(f"explain-{'dark' if dark else 'light'}-{shape}", dark=dark, width=size[0], height=size[1])
            assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth"), shape
    assert complaints(page) == []
    assert requested(page) == []


def test_the_slider_reweights_colours_and_numbers_and_as_run_goes_back(page: Any, trace: dsas.Trace) -> None:
    means = trace.row().means()
    peak = max(max(row.means()) for row in trace.rows())
    assert heat(page, 3) == pytest.approx(means[3] / peak, abs=0.01)
    all_of(page, ".token")[3].click()
    slide(page, 50)
    assert heat(page, 3) == pytest.approx(0.5 * means[3] / peak, abs=0.01)
    assert f"applied strength {0.5 * means[3]:#.3g}" in one_of(page, "#readout").text
    assert one_of(page, "#factor").text == "1.00 (× 0.50)"
    slide(page, 0)
    assert heat(page, 3) == 0
    one_of(page, "#reset").click()
    assert heat(page, 3) == pytest.approx(means[3] / peak, abs=0.01)
    assert complaints(page) == []


def test_keyboard_and_pointer_show_the_numbers_of_a_token_and_of_a_cell(
    page: Any, trace: dsas.Trace, look: Callable[..., None]
) -> None:
    from selenium.webdriver import ActionChains, Keys

    assert trace.doses is not None
    first = one_of(page, ".token")
    page.execute_script("arguments[0].focus()", first)
    ActionChains(page).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT).perform()
    told = one_of(page, "#readout").text
    assert "token 3 of" in told
    assert "mean over 3 sites" in told
    assert f"KL {trace.next_tokens[0].kl[2]:#.3g} nats" in told
    assert "next, steered:" in told
    canvas = one_of(page, "canvas")
    page.execute_script("arguments[0].focus()", canvas)
    ActionChains(page).send_keys(Keys.ARROW_RIGHT, Keys.ARROW_DOWN).perform()
    told = one_of(page, "#readout").text
    assert "token 4 of" in told
    assert "model.layers.1" in told
    assert f"applied strength {trace.strengths[1, 0, 3]:#.3g}" in told
    assert f"relative dose {trace.doses[1, 0, 3]:#.3g}" in told
    look("explain-keyboard")
    ActionChains(page).move_to_element(all_of(page, ".token")[7]).perform()
    assert "token 8 of" in one_of(page, "#readout").text
    ActionChains(page).move_to_element_with_offset(canvas, 0, 0).perform()
    assert "model.layers.1" in one_of(page, "#readout").text
    assert complaints(page) == []


def test_another_quantity_and_another_site_can_be_shown(page: Any, trace: dsas.Trace) -> None:
    from selenium.webdriver.support.select import Select

    Select(one_of(page, "#quantity")).select_by_visible_text("regulator alone")
    Select(one_of(page, "#site")).select_by_visible_text("model.layers.2")
    assert trace.regulators is not None
    shown = trace.regulators[2]
    assert heat(page, 3) == pytest.approx(float(shown[0, 3] / shown.max()), abs=0.01)
    assert not one_of(page, "#strength").is_enabled()
    Select(one_of(page, "#quantity")).select_by_visible_text("next-token change (KL, nats)")
    most = max(max(row.kl) for row in trace.next_tokens)
    assert heat(page, 3) == pytest.approx(trace.next_tokens[0].kl[3] / most, abs=0.01)
    assert complaints(page) == []


def test_4000_tokens_at_60_sites_stay_smooth(browser: Any, tmp_path: Path, look: Callable[..., None]) -> None:
    values = torch.rand(60, 4000, generator=torch.Generator().manual_seed(0)) ** 3
    sites, tokens = tuple(f"model.layers.{n}" for n in range(60)), tuple(f" word{n}" for n in range(4000))
    text = Explained("Text 1", tokens, sites, 0.1, {"strength": 0.1 * values, "regulator": values, "dose": values})
    (tmp_path / "large.html").write_text(explanation_html([text], title="Large"), encoding="utf-8")
    browser.get((tmp_path / "large.html").as_uri())
    measure = """
        const done = arguments[1], act = new Function("i", arguments[0]), times = [];
        let i = 0;
        const frame = () => { const start = performance.now(); act(i);
          document.body.offsetHeight; requestAnimationFrame(() => setTimeout(() => {
            times.push(performance.now() - start); i++ < 20 ? frame() : done(times); })); };
        frame();"""
    slider = "strength.value = 20 * i; strength.dispatchEvent(new Event('input'))"
    scroll = "document.querySelector('.scroll').scrollLeft = 1200 * i"
    median = {
        name: statistics.median(browser.execute_async_script(measure, act))
        for name, act in (("slider", slider), ("scroll", scroll))
    }
    look("explain-4000-tokens")
    assert max(median.values()) < 250, median  # ms per step; on software rendering and a busy machine
    assert complaints(browser) == []


def test_a_notebook_gets_the_page_in_a_frame_that_works(browser: Any, trace: dsas.Trace, tmp_path: Path) -> None:
    (tmp_path / "notebook.html").write_text(framed(trace.to_html()), encoding="utf-8")
    browser.get((tmp_path / "notebook.html").as_uri())
    browser.switch_to.frame(one_of(browser, "iframe"))
    assert len(all_of(browser, ".token")) == int(trace.real.sum())
    assert complaints(browser) == []
