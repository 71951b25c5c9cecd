"""A headless Chromium that reaches nothing but files and this machine, and that notes whatever goes wrong."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

PICTURES = Path(__file__).parents[2] / "out" / "browser"
FLAGS = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
    --disable-component-update --disable-sync --hide-scrollbars""".split()  # noqa: SIM905


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    from selenium import webdriver

    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert program, "install chromium and chromium-driver"
    assert driver, "install chromium and chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = program
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,900"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chromium = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield chromium
    chromium.quit()


@pytest.fixture
def look(browser: Any) -> Callable[..., None]:
    """Return what sets colour scheme and width, and keeps a picture."""

    def shoot(name: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
        PICTURES.mkdir(parents=True, exist_ok=True)
        assert browser.save_screenshot(str(PICTURES / f"{name}.png"))

    return shoot


def complaints(browser: Any) -> list[str]:
    """Return what the console says that is worse than a note."""
    return [line["message"] for line in browser.get_log("browser") if line["level"] == "SEVERE"]


def requested(browser: Any) -> list[str]:
    """Return the addresses that a page asked a server for."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    addresses = [params["request"]["url"] for params in sent]
    return [address for address in addresses if address.startswith(("http", "ws", "ftp"))]
