"""A draft becomes a Steering that is calibrated and tried on questions of which no answer was fitted on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dsas
from dsas.drafting import new_steering as room
from dsas.drafting.answers import Triple, Writer
from dsas.drafting.choosing import Chosen
from dsas.drafting.judging import Verdict
from dsas.drafting.prompts import Prompts
from dsas.drafting.three_sets import Draft
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = [f"Why is number {number} odd?" for number in range(25)]
KEPT = [
    Triple(question, seed, f"LA LA {number} {seed}!", f"no song {number} {seed}.", f"it is {number}, {seed}.")
    for seed in range(2)
    for number, question in enumerate(QUESTIONS[:20])
]


@pytest.fixture
def draft() -> Draft:
    verdict = Verdict("loud", 1.0, 0.5, {"unwanted": 1.0, "wanted": 0.0, "neutral": 0.0})
    return Draft("sings", Chosen(KEPT, []), verdict, None, (), {})


@pytest.fixture
def writer() -> Writer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    return Writer(tiny_model(), tokenizer, "tiny", None, Prompts(["{question} Sing."], ["b"]), 4, 8)


def longer(texts: Sequence[str]) -> list[float]:
    return [len(text) / 4 for text in texts]


def test_it_is_fitted_on_three_fifths_of_the_questions_and_calibrated_on_others(
    writer: Writer, draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def calibrate(*args: Any, **options: Any) -> Any:
        given.update(options)
        return dsas.calibrate(*args, **options, limit=0.01)

    monkeypatch.setattr(room, "calibrate", calibrate)
    with pytest.warns(dsas.DsasWarning, match="every strength up to the limit"):
        steering = room.fitted(writer, draft, tmp_path, progress=False)
    assert steering.settings["texts"] == {"source": 24, "control": 24, "target": 24}
    asked = [{row["prompt"][0]["content"] for row in given[name]["neutral answers"]} for name in ("tune", "held_out")]
    assert asked == [{QUESTIONS[n] for n in range(20) if n % 5 == fold} for fold in (3, 4)]
    assert {row["completion"][0]["content"] for row in given["tune"]["neutral answers"]} < {one.neutral for one in KEPT}
    asked_for = given["held_out"]["wanted answers"]
    said = [(one.role, one.content) for one in asked_for[0].messages]
    assert said == [("user", f"{QUESTIONS[4]} Sing."), ("assistant", KEPT[4].wanted)]
    assert len(asked_for) == len(given["held_out"]["neutral answers"]) == 8
    assert given["budget"].worst
    assert steering.calibration is not None
    assert steering.default_strength == steering.calibration.strength


def test_it_is_tried_on_the_other_questions_steered_and_not_and_everything_is_written(
    writer: Writer, draft: Draft, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = dsas.fit(
        writer.model, writer.tokenizer, source=["a loud one", "so loud!", "loud", "very loud"],
        control=["a calm one", "so calm!", "calm", "very calm"], target=["calm it", "be calm", "be still", "quiet"],
        selection="all", regulator="constant", progress=False,
    )  # fmt: skip
    monkeypatch.setattr(room, "fitted", lambda *_, **__: steering)
    found, trial = room.make(writer, draft, longer, QUESTIONS, tmp_path, show_words=True, progress=False)
    others = [question for number, question in enumerate(QUESTIONS) if number >= 20 or number % 5 >= 3]
    assert [question for question, _, _ in trial.answered] == others
    texts = [f"<user>{question} Sing.\n<assistant>" for question in others]
    plain = [answer for start in (0, 8) for answer in writer.drawn(texts[start : start + 8], 0)]
    with found.apply(writer.model, 1.0, record=False):
        steered = [answer for start in (0, 8) for answer in writer.drawn(texts[start : start + 8], 0)]
    assert [answer for _, answer, _ in trial.answered] == plain
    assert [answer for _, _, answer in trial.answered] == steered != plain
    assert trial.unsteered.mean == np.mean([len(answer) > 2 for answer in plain])
    assert trial.steered.n == len(others)
    assert dsas.Steering.from_pretrained(tmp_path / "steering").digest() == steering.digest()
    page = (tmp_path / "report.html").read_text()
    assert f"tried on {len(others)} others" in page
    assert others[0] in page
    assert {file.name for file in tmp_path.iterdir()} == {"steering", "report.html"}
