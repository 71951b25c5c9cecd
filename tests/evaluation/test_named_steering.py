"""What another harness's command line says of Steerings and strengths is read, or refused before a model is loaded."""

from pathlib import Path
from typing import Any

import pytest
from makers import random_steering

import dsas
from dsas.errors import ArtifactError, OptionError, StrengthError
from dsas.evaluation.named_steering import named_steering
from dsas.testing import tiny_model

ASKED = "steering=FOLDER"


@pytest.fixture
def folders(tmp_path: Path) -> list[str]:
    model = tiny_model("llama", layers=2)
    for name, seed in (("detox", 1), ("calm", 2)):
        random_steering(model, seed=seed).save_pretrained(tmp_path / name)
    return [str(tmp_path / "detox"), str(tmp_path / "calm")]


def test_one_is_read_with_a_number_that_may_be_text(folders: list[str]) -> None:
    digest = dsas.Steering.from_pretrained(folders[0]).digest()
    for strength, number in ((0.2, 0.2), ("2e-1", 0.2), ("-1", -1.0), (3, 3.0), ([0.5], 0.5), (None, None)):
        chosen, found = named_steering(folders[0], strength, ASKED)
        assert (chosen.digest(), found) == (digest, number)  # type: ignore[union-attr]


def test_several_act_in_their_order_at_one_strength_or_at_one_each(folders: list[str]) -> None:
    digests = [dsas.Steering.from_pretrained(folder).digest() for folder in folders]
    for strength, numbers in ((None, None), ("0.2", 0.2), (["0.2", 0.5], [0.2, 0.5])):
        chosen: Any
        chosen, found = named_steering(folders, strength, ASKED)
        assert [one.digest() for one in chosen.steerings] == digests
        assert found == numbers


@pytest.mark.parametrize(
    ("steering", "strength", "error", "message"),
    [
        (None, None, OptionError, "expected steering=FOLDER, a folder or hub id, got None"),
        (3.5, None, OptionError, "expected steering=FOLDER, .* got 3.5"),
        ([], None, OptionError, "expected steering=FOLDER"),
        ("./gone", 0.1, ArtifactError, "neither a local folder nor a readable hub id"),
        ("detox", "high", OptionError, "strength: expected a number, got 'high'"),
        ("detox", True, OptionError, "strength: expected a number, got True"),
        ("detox", "inf", StrengthError, "must be finite"),
        ("detox", [0.1, 0.2], OptionError, "one strength, or one for each of 1 Steerings, got 2"),
    ],
)
def test_what_names_none_is_refused(steering: Any, strength: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        named_steering(steering, strength, ASKED)
