"""The Steerings in `steerings/` are small, say what they are and on what evidence, and fit the packaged models."""

import re
from pathlib import Path

import huggingface_hub
import pytest
import torch

import dsas
from dsas.steering.folder import CARD

ROOT = Path(__file__).parents[1] / "steerings"
FOLDERS = sorted(folder.name for folder in ROOT.iterdir() if folder.is_dir())


def test_the_table_names_them_all_and_there_is_one_for_each_packaged_model() -> None:
    table = (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\]\(([\w-]+)/README\.md\)", table)) == FOLDERS
    assert {name.partition("-")[0] for name in FOLDERS} == {"smollm2", "gemma3"}


@pytest.mark.parametrize("name", FOLDERS)
def test_each_is_small_and_calibrated_and_its_card_has_evidence_limits_and_a_licence(name: str) -> None:
    folder = ROOT / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10**6
    steering = dsas.Steering.from_pretrained(folder)
    assert steering.calibration is not None
    assert steering.calibration.kept
    assert steering.strength == steering.calibration.strength
    assert not any(isinstance(rule.regulator, dsas.Constant) for rule in steering.rules)
    card = (folder / CARD).read_text(encoding="utf-8")
    assert card == steering.card()
    assert huggingface_hub.ModelCard(card).data.license in ("apache-2.0", "gemma")
    for heading in ("## Use", "## Strength", "## Evidence", "## Limits"):
        assert heading in card
    assert "unsteered" in card


@pytest.mark.real
@pytest.mark.parametrize("name", FOLDERS)
def test_each_fits_the_packaged_model_without_a_warning_and_changes_what_it_says(name: str) -> None:
    from dsas.demo.models import real_model
    from dsas.model.loading import load_model

    model, tokenizer = load_model(str(real_model(name.partition("-")[0])))
    given = tokenizer("You are a", return_tensors="pt")
    with torch.no_grad():
        plain = model(**given).logits
        with dsas.Steering.from_pretrained(ROOT / name).apply(model):
            steered = model(**given).logits
    assert not torch.equal(plain, steered)
