"""What commands print of other people's texts and Steerings is shown, and never obeyed, by a terminal or by rich."""

import ast
import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import random_steering

import dsas
from dsas import cli
from dsas.cli.output import console, say_json, show_table, visible
from dsas.errors import DsasWarning
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

HOSTILE = "\x1b]0;owned\x07\x1b[31m\x9b2J\r\x08‮​[bold]x[/bold] [/INST] :smile: \ud800"
OBEYED = [*map(chr, (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A)))]


def harmless(text: str) -> bool:
    return not any(character in text for character in OBEYED)


def test_what_a_terminal_obeys_is_written_out_and_all_else_is_left() -> None:
    assert visible("a\tb\nc é 日本 🙂 [bold]") == "a\tb\nc é 日本 🙂 [bold]"
    assert visible("\x1b[31m\r\x9b\u202e\ud800\x7f\u2028") == r"\x1b[31m\r\x9b\u202e\ud800\x7f\u2028"
    assert harmless(visible("".join(OBEYED)))
    assert visible(visible(HOSTILE)) == visible(HOSTILE)


def test_tables_and_lines_in_colour_show_all_characters(capsys: pytest.CaptureFixture[str]) -> None:
    show_table([HOSTILE, "b"], [[HOSTILE, "[/x]"]], title=HOSTILE)
    console().print(HOSTILE, soft_wrap=True)
    out = capsys.readouterr().out
    assert harmless(out)
    assert "[/x]" in out
    assert "[bold]x[/bold] [/INST] :smile:" in out


def test_json_has_no_numbers_that_json_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    say_json({"a": [float("nan"), (float("inf"), 1.5)], "b": HOSTILE})
    out = capsys.readouterr().out
    assert harmless(out)
    assert json.loads(out, parse_constant=pytest.fail) == {"a": [None, [None, 1.5]], "b": HOSTILE}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a tiny model and a stranger's Steering."""
    model = tiny_model(layers=2)
    model.save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    own = random_steering(model)
    identity = replace(own.model, model_class="\x1b[31mred")
    rules = [rule._replace(site=dsas.Site("\x1b]0;owned\x07[bold]")) for rule in own.rules[:1]]
    settings = {"[bold]": "\x1b[2J"}
    dsas.Steering(rules, identity, settings=settings).save_pretrained(tmp_path / "strange")
    return tmp_path


def test_a_strangers_steering_is_shown_and_not_obeyed(run: Callable[..., Any], folder: Path) -> None:
    done = run("info", folder / "strange")
    assert done.status == 0, done.err
    assert harmless(done.out)
    for part in (r"\x1b[31mred", r"\x1b]0;owned\x07[bold]", r"[bold]: \x1b[2J"):
        assert part in done.out
    refused = run("generate", folder / "model", "hello", "--steering", folder / "strange")
    assert refused.status == 2
    assert r"\x1b]0;owned\x07[bold]" in refused.err
    assert harmless(refused.err)


@pytest.mark.parametrize("prompt", ["[INST] Hi [/INST]", "He said it [citation needed] twice", "a[bold]b", "\x1b[31m"])
def test_prompts_are_printed_as_they_are(run: Callable[..., Any], folder: Path, prompt: str) -> None:
    done = run("generate", folder / "model", prompt, "--new-tokens", 3)
    assert done.status == 0, done.err
    assert visible(prompt) in done.out
    assert harmless(done.out)


def test_warnings_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = cli.show_warning
        warnings.warn("\x1b[31mred", DsasWarning, stacklevel=1)
    assert capsys.readouterr().err == "warning: \\x1b[31mred\n"


def test_no_command_prints_by_itself() -> None:
    for file in Path(cli.__file__).parent.glob("*.py"):
        named = {node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)}
        assert file.name == "output.py" or not named & {"print", "Console"}, file.name


def test_activations_that_overflow_are_told_by_every_command_that_shows_what_comes(
    run: Callable[..., Any], folder: Path
) -> None:
    methods: Any = {"transform": dsas.Addition(torch.full((WIDTH,), 1e10)), "regulator": dsas.Constant()}
    random_steering(tiny_model(layers=2), **methods).save_pretrained(folder / "large")
    strong = ["--steering", folder / "large", "--strength", "1e30"]
    for command in (
        ["generate", folder / "model", "hello", *strong],
        ["generate", folder / "model", "hello", *strong, "--explain"],
        ["generate", folder / "model", "hello", *strong, "--temperature", 1, "--json"],
        ["explain", folder / "model", "hello", *strong, "--json"],
        ["explain", folder / "model", "hello", *strong, "--generate", 2, "--out", folder / "page.html"],
    ):
        done = run(*command)
        assert done.status == 2, command
        assert "scores of the next token are not numbers" in done.err
    assert not (folder / "page.html").exists()
