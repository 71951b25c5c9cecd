"""A conversation on the terminal: turns, another strength and Steering while it goes on, Ctrl-C, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering, templated

from dsas.cli.output import visible
from dsas.testing import tiny_model

CHAT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture
def converse(run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    model = tiny_model(layers=2, vocab_size=300)
    model.save_pretrained(tmp_path / "model")  # pyright: ignore
    templated(CHAT, specials=("<s>", "</s>")).save_pretrained(tmp_path / "model")
    random_steering(model).save_pretrained(tmp_path / "calm")

    def command(said: list[Any], *options: Any) -> Any:
        waiting = iter(said)

        def ask(_prompt: str) -> str:
            one = next(waiting, EOFError)
            if not isinstance(one, str):
                raise one
            return one.format(tmp_path)

        monkeypatch.setattr("builtins.input", ask)
        return run("generate", tmp_path / "model", "--chat", "--new-tokens", 9, *options)

    return command


def test_a_conversation_goes_on_until_it_is_ended_whatever_is_mistyped(converse: Callable[..., Any]) -> None:
    said = ["Hello", "/strength much", "/strength 0.5", "/sterring x", "/steering {}/calm", "Again", KeyboardInterrupt]
    done = converse([*said, "/steering {}/gone", "/steering none", "/restart", "Last"])
    assert done.status == 0, done.err
    lines = done.out.split("\n")
    for expected in (
        "error: /strength takes a number, got 'much'",
        "strength 0.5, once /steering names one",
        "error: unknown command '/sterring x'; /help lists them",
        "Ctrl-D ends the conversation.",
        "no steering",
        "a new conversation",
    ):
        assert expected in lines
    assert any(line.endswith("calm, strength 0.5") for line in lines)
    assert any(line.startswith("error: ") and "gone" in line for line in lines)


def test_the_answers_are_those_of_the_same_prompt_alone(converse: Callable[..., Any], tmp_path: Path, run: Any) -> None:
    options = ["--steering", tmp_path / "calm", "--strength", 0.3, "--system", "Be brief."]
    talked = converse(["Hello"], *options)
    alone = run("generate", tmp_path / "model", "Hello", "--chat", "--new-tokens", 9, "--json", *options)
    (row,) = json.loads(alone.out)["generations"]
    expected = visible(row["steered"]).strip()
    assert len(expected) > 2
    assert expected in talked.out
    assert "\x1b" not in talked.out


@pytest.mark.parametrize("options", [("--json",), ("--compare", "--steering", "x")])
def test_options_of_lists_are_refused(converse: Callable[..., Any], options: tuple[str, ...]) -> None:
    assert "a conversation goes without --compare, --table and --json" in converse([], *options).err


def test_ctrl_c_while_a_steering_is_loaded_keeps_the_conversation(
    converse: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dsas.cli.conversing.steering_folder", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    done = converse(["Hello", "/steering {}/calm", "/help"])
    assert done.status == 0, done.err
    assert done.out.count("stopped\n") == 1
    assert done.out.count("/restart         start a new conversation") == 2
