"""A card says what a stranger needs: what, for which model, how, how much and on what evidence, limits, licence."""

from pathlib import Path

import huggingface_hub
import pytest
from makers import random_steering

import dsas
from dsas.errors import OptionError
from dsas.steering.folder import CARD
from dsas.testing import tiny_model


def described() -> dsas.Steering:
    return random_steering(tiny_model()).described(
        "Makes answers\nless gloomy.",
        model="someone/tiny",
        licence="apache-2.0",
        evidence=["gloomy answers: 40 % unsteered, 10 % steered, n = 100"],
        limits=["English only."],
    )


def test_a_described_steering_says_all_of_it_in_its_card_and_does_what_it_did(tmp_path: Path) -> None:
    steering = described()
    assert steering.digest() == random_steering(tiny_model()).digest()
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    card = (tmp_path / CARD).read_text()
    assert again.card() == card
    data = huggingface_hub.ModelCard(card).data
    assert (data.license, data.base_model, data.library_name) == ("apache-2.0", "someone/tiny", "dsas")
    order = ["Makes answers less gloomy.", f"weights `{steering.model.fingerprint}`", "## Use", '("someone/tiny")',
             "with steering.apply(model):", "## Strength", "not calibrated", "## Evidence", "10 % steered", "## Limits",
             "English only.", "does not rule it out", "## How it was made", repr(steering)]  # fmt: skip
    places = [card.index(part) for part in order]
    assert places == sorted(places)
    assert "'what'" not in card


def test_a_card_holds_any_text_and_half_a_character_as_its_code(tmp_path: Path) -> None:
    steering = random_steering(tiny_model()).described('--- "it" *calms*: [a](b) | é \ud800')
    steering.save_pretrained(tmp_path)
    assert '\n\n--- "it" *calms*: [a](b) | é \\ud800\n' in (tmp_path / CARD).read_text(encoding="utf-8")
    assert dsas.Steering.from_pretrained(tmp_path).settings == steering.settings


def test_without_a_description_no_heading_is_empty_and_no_field_is_made_up() -> None:
    card = random_steering(tiny_model()).card()
    assert "## Evidence" not in card
    assert "license:" not in card
    assert "base_model:" not in card
    assert "## Limits" in card


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"what": " "}, "a sentence that says what the Steering does"),
        ({"licence": "mit\nbase_model: x/y"}, "a licence by its short name"),
        ({"model": "tiny"}, "the model as OWNER/NAME, got 'tiny'"),
        ({"evidence": "answers: 40 % to 10 %"}, "evidence and limits as lists of sentences, got a single text"),
    ],
)
def test_what_would_break_the_front_matter_is_refused(changed: dict[str, str], message: str) -> None:
    given = {"what": "It helps."} | changed
    with pytest.raises(OptionError, match=message):
        random_steering(tiny_model()).described(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "told", ["x", {"what": 3}, {"what": "a", "model": "x\ny: z", "licence": "", "evidence": [], "limits": []}]
)
def test_a_stored_description_of_another_shape_is_shown_as_none(told: object) -> None:
    plain = random_steering(tiny_model())
    card = dsas.Steering(plain.rules, plain.model, {"card": told}).card()  # type: ignore[dict-item]
    assert "y: z" not in card
    assert huggingface_hub.ModelCard(card).data.license is None
