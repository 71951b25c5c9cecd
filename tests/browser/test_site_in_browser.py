"""The site in a real browser: built strictly, quiet, with a search that finds; wide, on a phone, in the dark."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser.conftest import complaints, requested

pytestmark = pytest.mark.browser
pytest.importorskip("mkdocs")
ROOT = Path(__file__).parents[2]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:  # type: ignore[override]
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Build the site, where any broken link or anchor is an error, and serve it."""
    folder = tmp_path_factory.mktemp("site")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'scripts'}", "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr[-3000:]
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def wide(browser: Any) -> list[str]:
    """Return what sticks out of the window, other than what scrolls by itself."""
    return browser.execute_script(
        """const edge = document.documentElement.clientWidth + 1;
        const hides = (e) => /(auto|scroll|hidden|clip)/.test(getComputedStyle(e).overflowX);
        const scrolls = (e) => e && (hides(e) || scrolls(e.parentElement));
        return [...document.querySelectorAll('.md-content *')]
            .filter((e) => e.getBoundingClientRect().right > edge && !scrolls(e.parentElement))
            .map((e) => e.tagName + ' ' + e.className).slice(0, 5)"""
    )


PAGES = ("", "concepts/", "reference/verbs/", "howto/troubleshooting/")


@pytest.mark.parametrize("page", PAGES)
def test_a_page_asks_nobody_else_for_anything_and_fits_wide_phone_and_dark(
    browser: Any, look: Callable[..., None], site: str, page: str
) -> None:
    name = f"site-{page.strip('/').replace('/', '-') or 'home'}"
    for scheme, width in (("wide", 1280), ("phone", 390), ("dark", 1280)):
        mode = {"name": "prefers-color-scheme", "value": "dark" if scheme == "dark" else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [mode]})
        browser.get(f"{site}/{page}")
        browser.execute_script("localStorage.clear()")  # of a reader who was here before
        browser.refresh()
        look(f"{name}-{scheme}", dark=scheme == "dark", width=width)
        assert wide(browser) == [], scheme
        drawn = browser.find_element("css selector", "body").get_attribute("data-md-color-scheme")
        assert drawn == ("slate" if scheme == "dark" else "default")
    assert [address for address in requested(browser) if not address.startswith(site)] == []
    assert complaints(browser) == []


def test_search_finds_a_function_and_an_error_and_leads_there(browser: Any, site: str) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    for asked, expected in (("MissingExtraError", "errors"), ("calibrate budget", "calibr")):
        browser.get(site)
        field = browser.find_element("css selector", "input.md-search__input")
        browser.execute_script("arguments[0].focus()", field)
        field.send_keys(asked)
        found = WebDriverWait(browser, 20).until(lambda b: b.find_elements("css selector", "a.md-search-result__link"))
        addresses = [one.get_attribute("href") for one in found]
        assert any(expected in address for address in addresses), (asked, addresses)
