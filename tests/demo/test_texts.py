"""The demo's texts, with a model and sources made up, so that what may go where is plain to see."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from dsas.demo import texts
from dsas.demo.texts import DemoTexts, demo_texts
from dsas.errors import TextsError
from dsas.testing import tiny_model, tiny_tokenizer


class Rude:
    """Finds a text toxic when it says so."""

    name = "rude"

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float("rude" in text) for text in texts])


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rude: int) -> DemoTexts:
    long = [f"{'rude' if number % 2 else 'soft'} words of prompt {number}" for number in range(623)]
    monkeypatch.setattr(texts, "toxic_prompts", lambda: long)
    for source in ("wikipedia", "openwebtext", "news"):
        monkeypatch.setattr(
            texts, f"{source}_sentences", lambda source=source: [f"{source} {number}" for number in range(900)]
        )
    samples = [f"rude {number}" for number in range(rude)] + [f"kind {number}" for number in range(40)]
    (tmp_path / "samples.json").write_text(json.dumps(samples))
    return demo_texts(
        tiny_model(layers=1), tiny_tokenizer(), [Rude()], file=tmp_path / "samples.json", progress=lambda done: None
    )


def test_no_text_serves_two_purposes_and_source_and_control_are_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=30)
    assert len(found.source) == len(found.control) == len(found.target) == 30
    assert all("rude" in text for text in found.source)
    assert sum(text.startswith("kind") for text in found.control) == 15
    assert sum(text.startswith("wikipedia") for text in found.control) == 15
    purposes = [found.source, found.control, found.target, found.tune_prompts, found.prompts]
    purposes += [found.tune[kind] for kind in found.tune if kind != "prompt style"]
    purposes += [found.report[kind] for kind in found.report if kind != "prompt style"]
    every = [text for purpose in purposes for text in purpose]
    assert len(every) == len(set(every))
    assert (len(found.tune_prompts), len(found.prompts)) == (50, 303)


def test_the_neutral_sentences_in_the_style_of_the_prompts_are_those_that_no_scorer_minds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=30)
    for kinds, prompts in ((found.tune, found.tune_prompts), (found.report, found.prompts)):
        assert kinds["prompt style"]
        assert set(kinds["prompt style"]) <= {prompt for prompt in prompts if prompt.startswith("soft")}


def test_a_model_that_says_too_little_that_is_toxic_is_no_model_for_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TextsError, match="got 15 and 40"):
        made(tmp_path, monkeypatch, rude=15)
