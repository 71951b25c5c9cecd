"""`dsas serve` takes its own options and hands all others on to vLLM, untouched and in their order."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

from dsas import cli
from dsas.testing import tiny_model


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr("dsas.serving.server.serve", lambda *args, **options: calls.append((args, options)))
    return calls


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dsas", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_options_of_vllm_are_handed_on(monkeypatch: pytest.MonkeyPatch, served: list[Any], tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("detox", "topic"):
        random_steering(tiny_model()).save_pretrained(name)
    theirs = ["--port", "8000", "-tp", "2", "-cc.mode=none", "--enforce-eager", "--hf-overrides", '{"a": 1}']
    ours = ["--steering", "detox/", "--steering", "b=topic", "--together", "2", "--spare", "3", "--reports"]
    ours += ["--default", "b=0.5", "--allow-off"]
    assert command(monkeypatch, "./model", *theirs[:4], *ours, *theirs[4:]) == 0
    given = {"together": 2, "spare": 3, "reports": True, "default": "b=0.5", "may_be_off": True}
    assert served == [(("./model", ["detox/", "b=topic"], theirs, given), {})]


def test_a_mistake_ends_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--port", "8000", "./model", "--steering", "detox/") == 2
    assert "the model comes first" in capsys.readouterr().err


def test_a_steering_that_is_not_there_is_told_before_anything_is_loaded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], served: list[Any], tmp_path: Path
) -> None:
    assert command(monkeypatch, "./model", "--steering", f"a={tmp_path / 'detox'}") == 2
    assert "neither a local folder nor a readable hub id" in capsys.readouterr().err
    assert served == []


def test_a_check_says_what_is_refused_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where nothing fits, nothing is started, so this needs no vLLM."""
    monkeypatch.setattr("dsas.serving.checking.require_vllm", lambda: None)
    tiny_model("llama").save_pretrained(tmp_path / "model")  # pyright: ignore[reportAttributeAccessIssue]
    random_steering(tiny_model("qwen2")).save_pretrained(tmp_path / "detox")
    assert command(monkeypatch, str(tmp_path / "model"), "--steering", str(tmp_path / "detox"), "--check") == 1
    told = json.loads(capsys.readouterr().out)
    assert "fitted on another kind of model: class 'Qwen2ForCausalLM'" in told["refused"]["detox"]
    assert (told["sites"], told["answered"]) == ({}, [])
    assert told["versions"].keys() >= {"dsas", "torch", "transformers"}
