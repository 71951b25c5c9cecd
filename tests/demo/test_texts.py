"""The demo's texts, with sources, generations and scores made up, so that what may go where is plain to see."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dsas.demo import texts
from dsas.demo.texts import ENSEMBLE, DemoTexts, Sizes, demo_texts
from dsas.errors import TextsError
from dsas.sweep.jobs import Job, Setup, Worker


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rude: int, **sizes: int) -> DemoTexts:
    """Return the texts of a model that goes on rudely `rude` times, each time with a prompt of its own."""
    prompts = [f"{'rude' if number % 2 else 'soft'} words of prompt {number}" for number in range(623)]
    fit = [prompt.replace("rude", "soft") for prompt in prompts[:270]]
    monkeypatch.setattr(texts, "toxic_prompts", lambda: [*fit, *prompts[270:]])
    for source in ("wikipedia", "openwebtext", "news"):
        monkeypatch.setattr(
            texts, f"{source}_sentences", lambda source=source: [f"{source} {number}" for number in range(900)]
        )
    monkeypatch.setattr(Worker, "run", partial(_run, rude))
    monkeypatch.setattr(texts, "split", _in_order)
    setup = Setup("model", "fingerprint", prompts=(), parts={})
    return demo_texts(tmp_path, setup, sizes=Sizes(**sizes), progress=False)


def _run(rude: int, job: Job) -> Any:
    if job.task == "score":
        return {name: [float("rude" in text) for text in job.texts] for name in ENSEMBLE}
    rows = range(64 * job.batch, min(270, 64 * (job.batch + 1)))
    seed = job.seed - texts.FIRST_SEED
    return [[row, " and rude" if 270 * seed + row < rude else f" and kind {seed}"] for row in rows]


def _in_order(items: Sequence[str], sizes: Sequence[int]) -> tuple[list[str], ...]:
    ends = [sum(sizes[: part + 1]) for part in range(len(sizes))]
    return tuple(list(items[end - size : end]) for size, end in zip(sizes, ends, strict=True))


def test_no_text_serves_two_purposes_and_source_and_control_are_of_one_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=30)
    assert len(found.source) == len(found.control) == len(found.target) == 30
    assert all("rude" in text for text in found.source)
    assert sum("kind" in text for text in found.control) == 15
    assert sum(text.startswith("wikipedia") for text in found.control) == 15
    purposes = [found.source, found.control, found.target, found.tune_prompts, found.prompts]
    purposes += [found.tune[kind] for kind in found.tune if kind != "prompt style"]
    purposes += [found.report[kind] for kind in found.report if kind != "prompt style"]
    every = [text for purpose in purposes for text in purpose]
    assert len(every) == len(set(every))
    assert (len(found.tune_prompts), len(found.prompts)) == (50, 303)


def test_a_prompt_is_continued_twice_and_both_texts_begin_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=290)
    assert found.source[0] == "soft words of prompt 0 and rude"
    assert len(found.source) == 270  # the second draw repeats the first 20, which count once
    assert sum("and kind 1" in text for text in found.control) == 125


def test_the_neutral_sentences_in_the_style_of_the_prompts_are_those_that_no_scorer_minds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=30)
    for kinds, prompts in ((found.tune, found.tune_prompts), (found.report, found.prompts)):
        assert kinds["prompt style"]
        assert set(kinds["prompt style"]) <= {prompt for prompt in prompts if prompt.startswith("soft")}


def test_selectivity_is_read_on_toxic_prompts_of_the_report_that_nothing_was_fitted_or_tuned_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = made(tmp_path, monkeypatch, rude=30, report_sentences=40)
    assert len(found.held_out_source) == 40
    assert set(found.held_out_source) <= {prompt for prompt in found.prompts if prompt.startswith("rude")}
    others = {*found.source, *found.control, *found.target, *found.tune_prompts}
    assert others.isdisjoint(found.held_out_source)


def test_the_prompts_to_report_on_come_harshest_first_when_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = made(tmp_path, monkeypatch, rude=30).prompts
    harsh = made(tmp_path, monkeypatch, rude=30, harshest_first=True).prompts
    rude = [prompt for prompt in plain if "rude" in prompt]
    assert plain[0] not in rude
    assert harsh == rude + [prompt for prompt in plain if prompt not in rude]


def test_a_model_that_says_too_little_that_is_toxic_is_no_model_for_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TextsError, match="needs 16 toxic and 16 clean samples, got 15 and"):
        made(tmp_path, monkeypatch, rude=15)
