"""`dsas serve` takes its own options and hands all others on to vLLM, untouched and in their order."""

import sys
from typing import Any

import pytest

from dsas import cli


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    calls: list[Any] = []
    monkeypatch.setattr("dsas.cli.serve.run", lambda *args, **options: calls.append((args, options)))
    return calls


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["dsas", "serve", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_options_of_vllm_are_handed_on(monkeypatch: pytest.MonkeyPatch, served: list[Any]) -> None:
    theirs = ["--port", "8000", "-tp", "2", "-cc.mode=none", "--enforce-eager", "--hf-overrides", '{"a": 1}']
    ours = ["--steering", "detox/", "--steering", "b=topic", "--together", "2", "--spare", "3", "--reports"]
    assert command(monkeypatch, "./model", *theirs[:4], *ours, *theirs[4:]) == 0
    assert served == [(("./model", ["detox/", "b=topic"], theirs), {"together": 2, "spare": 3, "reports": True})]


def test_a_mistake_ends_with_status_2_and_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--port", "8000", "./model", "--steering", "detox/") == 2
    assert "the model comes first" in capsys.readouterr().err
