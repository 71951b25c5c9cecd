"""The playground in a real browser, over a real server on this machine, with a tiny model."""

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from browser.conftest import complaints, requested
from makers import random_steering, templated

import dsas
from dsas.explaining.dialogue import Dialogue
from dsas.testing import tiny_model

pytestmark = pytest.mark.browser
PORT = 7869
STRENGTH = 2.0
CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class Served(NamedTuple):
    """A playground at work, and what it was started with."""

    model: Any
    tokenizer: Any
    steerings: dict[str, dsas.Steering]
    address: str


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Start `dsas playground` as a user does, in a process of its own, and end it by what Ctrl-C sends."""
    folder = tmp_path_factory.mktemp("playground")
    model, tokenizer = tiny_model(vocab_size=300), templated(CHAT, specials=("<s>", "</s>"))
    model.save_pretrained(folder / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save_pretrained(folder / "model")
    steerings = {"detox": random_steering(model), "calm": random_steering(model, seed=1)}
    for name, steering in steerings.items():
        steering.save_pretrained(folder / name)
    given = [argument for name in steerings for argument in ("--steering", folder / name)]
    command = ["playground", folder / "model", *given, "--strength", STRENGTH, "--port", PORT]
    process = subprocess.Popen([sys.executable, "-m", "dsas.cli", *map(str, command)], preexec_fn=heed_interrupts)
    for _ in range(300):
        if process.poll() is not None or reachable("127.0.0.1"):
            break
        time.sleep(0.2)
    assert process.poll() is None
    yield Served(model, tokenizer, steerings, f"http://127.0.0.1:{PORT}/")
    process.send_signal(signal.SIGINT)
    try:
        process.wait(30)
    finally:
        process.kill()


def heed_interrupts() -> None:
    """Take SIGINT as an interactive shell would have it; a job in the background of a shell is started deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def reachable(host: str) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((host, PORT)) == 0


def filled(browser: Any, differs_from: str = "") -> tuple[str, str]:
    """Wait for the model, and return the steered and the unsteered text."""
    from selenium.webdriver.support.ui import WebDriverWait

    def texts(_driver: Any) -> tuple[str, str] | bool:
        found = tuple(
            browser.find_element("css selector", f"#{name} textarea").get_attribute("value")
            for name in ("steered", "unsteered")
        )
        return found if found[0] and found[0] != differs_from else False

    return WebDriverWait(browser, 60).until(texts)


def expected(served: Served, name: str) -> tuple[str, str]:
    model, tokenizer, steerings, _ = served
    trace = dsas.explain(model, tokenizer, steerings[name], prompt="Who are you?", generate=32, strength=STRENGTH)
    comparison = trace.comparisons[0]
    return "".join(trace.tokens[0][comparison.prompt_tokens :]), "".join(comparison.unsteered)


def shown(text: str) -> str:
    """Return what a text area makes of a text."""
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "\ufffd")


def test_a_prompt_is_continued_side_by_side_mapped_and_continued_by_another_steering(
    served: Served, browser: Any, look: Callable[..., None]
) -> None:
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(served.address)
    tabs = WebDriverWait(browser, 60).until(lambda driver: driver.find_elements("css selector", "button[role=tab]"))
    next(tab for tab in tabs if tab.text == "Prompt").click()
    WebDriverWait(browser, 60).until(
        lambda driver: driver.find_element("css selector", "#prompt textarea").is_displayed()
    )
    box = browser.find_element("css selector", "#prompt textarea")
    box.send_keys(Keys.CONTROL, "a")
    box.send_keys("Who are you?")
    browser.find_element("css selector", "#run").click()
    first = filled(browser)
    assert first == tuple(map(shown, expected(served, "detox")))
    frame = WebDriverWait(browser, 30).until(lambda driver: driver.find_element("css selector", "#heat iframe"))
    look("playground-wide", height=1400)
    look("playground-dark-phone", dark=True, width=390, height=1600)
    browser.switch_to.frame(frame)
    assert len(browser.find_elements("css selector", "canvas")) == 1
    browser.switch_to.default_content()
    look("playground-again")
    browser.find_element("css selector", "#steering input").click()
    ActionChains(browser).send_keys(Keys.ARROW_DOWN, Keys.ENTER).perform()
    assert filled(browser, differs_from=first[0]) == tuple(map(shown, expected(served, "calm")))
    assert complaints(browser) == []
    assert [url for url in requested(browser) if served.address not in url] == []


def test_only_this_machine_reaches_the_server_which_has_no_public_link_and_sends_no_statistics(served: Served) -> None:
    assert not reachable("127.0.0.2")  # it would, were the server on every address
    with urllib.request.urlopen(f"{served.address}config") as answer:
        config = json.load(answer)
    assert config["analytics_enabled"] is False
    assert config.get("share_url") is None


def test_a_conversation_is_written_as_it_comes_with_its_map_and_goes_on_at_another_strength(
    served: Served, browser: Any, look: Callable[..., None]
) -> None:
    from selenium.webdriver import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(served.address)
    WebDriverWait(browser, 60).until(lambda driver: driver.find_elements("css selector", "#say textarea"))
    expected = Dialogue(served.model, served.tokenizer)

    def answers() -> list[str]:
        return [one.text for one in browser.find_elements("css selector", "#chat .bot .prose")]

    for number, said in enumerate(("Who are you?", "And then?"), start=1):
        browser.find_element("css selector", "#say textarea").send_keys(said, Keys.ENTER)
        WebDriverWait(browser, 60).until(
            lambda driver, number=number: len(driver.find_elements("css selector", "#chat .steered")) == number
        )
        answer = expected.say(said, served.steerings["detox"], STRENGTH, new_tokens=32)
        letters = "".join(letter for letter in answer.text if letter.isalnum())
        assert letters
        assert any(letters in "".join(filter(str.isalnum, one)) for one in answers())
    look("playground-chat", height=1400)
    look("playground-chat-dark-phone", dark=True, width=390, height=1600)
    browser.find_element("css selector", "#clear").click()
    WebDriverWait(browser, 30).until(
        lambda driver: not driver.find_elements("css selector", "#chat .steered, #chat-heat iframe")
    )
    assert complaints(browser) == []
