"""`dsas doctor`, driven as a user drives it."""

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from multimodal import whisper

from dsas.testing import tiny_model, tiny_tokenizer

Run = Callable[..., Any]


def told(run: Run, *arguments: Any) -> tuple[int, dict[str, dict[str, str]]]:
    """Return the exit status, and each line by its name."""
    status, out, _ = run("doctor", *arguments, "--json")
    found = json.loads(out)
    assert status == (1 if found["problems"] else 0)
    return status, {line["name"]: line for line in found["lines"]}


def stored(folder: Path, model: Any) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_of_a_known_family_it_tells_sites_limits_and_what_is_supported(run: Run, tmp_path: Path) -> None:
    status, lines = told(run, stored(tmp_path, tiny_model("gpt2")))
    assert status == 0
    assert lines["residual"]["found"] == "3, the first transformer.h.0, the last transformer.h.2"
    assert lines["decoder"]["found"] == "GPT2Model at transformer"
    assert lines["longest text"]["found"] == "256 tokens, one per position embedding"
    assert {lines[name]["state"] for name in ("fit", "apply", "generate", "explain", "reads a text")} == {"ok"}
    assert lines["serve"]["state"] == "unknown"


def test_a_model_that_writes_down_speech_is_tried_with_silence(run: Run, tmp_path: Path) -> None:
    hearing: Any = whisper()
    hearing.model.save_pretrained(tmp_path)
    hearing.processor.save_pretrained(tmp_path)
    status, lines = told(run, tmp_path)
    assert status == 0
    assert lines["kind"]["found"].startswith("WhisperForConditionalGeneration, encoder and decoder")
    assert lines["reads a text"]["state"] == "ok"


def test_what_is_too_old_is_a_problem_with_the_command_that_mends_it(run: Run, monkeypatch: Any) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name == "gradio":
            raise metadata.PackageNotFoundError(name)
        return "4.40.0" if name == "transformers" else real(name)

    monkeypatch.setattr(metadata, "version", version)
    status, lines = told(run)
    assert status == 1
    assert (lines["transformers"]["state"], lines["transformers"]["found"][:6]) == ("problem", "4.40.0")
    assert lines["transformers"]["remedy"].startswith('pip install "transformers>=')
    assert (lines["playground"]["state"], lines["playground"]["remedy"]) == (
        "missing",
        "pip install 'dsas[playground]'",
    )
    status, out, _ = run("doctor")
    assert "missing  playground: without gradio -> pip install 'dsas[playground]'" in out
    assert out.endswith("problems: 1\n")


def test_a_model_whose_numbers_are_not_finite_or_that_cannot_be_loaded_is_a_problem(run: Run, tmp_path: Path) -> None:
    model: Any = tiny_model()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    status, lines = told(run, stored(tmp_path / "broken", model))
    assert (status, lines["reads a text"]["found"]) == (1, "its logits are not finite")
    (tmp_path / "empty").mkdir()
    status, lines = told(run, tmp_path / "empty")
    assert (status, lines["loads"]["state"]) == (1, "problem")


def test_a_family_that_nobody_checked_is_unknown_and_one_that_differed_says_how(
    run: Run, tmp_path: Path, monkeypatch: Any
) -> None:
    folder = stored(tmp_path, tiny_model())
    columns, row = ["residual", "steered at", "fit", "apply", "generate", "explain"], ["4", "residual", *["yes"] * 4]
    table = json.dumps({"transformers": "5", "columns": columns, "families": {"other": row}})
    monkeypatch.setattr("dsas.model.families._table", lambda: json.loads(table))
    assert told(run, folder)[1]["family"]["state"] == "unknown"
    table = table.replace(
        '"other": ["4", "residual", "yes", "yes"', '"llama": ["4", "residual", "yes", "a site was lost"'
    )
    status, lines = told(run, folder)
    assert (status, lines["apply"]["found"], lines["fit"]["state"]) == (1, "differed: a site was lost", "ok")
