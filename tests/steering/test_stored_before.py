"""Steerings that were stored by earlier versions load, keep their digests and steer."""

import json
from pathlib import Path

import pytest
import torch
from makers import ids_of, logits_of

import dsas
from dsas.testing import tiny_model, tiny_tokenizer

STORED = Path(__file__).parents[1] / "golden" / "stored"
DIGESTS: dict[str, str] = json.loads((STORED / "digests.json").read_text())


@pytest.mark.parametrize("name", DIGESTS)
def test_a_steering_of_version_0_1_0_loads_with_its_digest_and_steers_the_model_it_was_fitted_on(name: str) -> None:
    steering, model = dsas.Steering.from_pretrained(STORED / name), tiny_model()
    assert steering.digest() == DIGESTS[name]
    ids = ids_of(tiny_tokenizer(), "the old dog barks at me!")
    plain = logits_of(model, ids)
    with steering.apply(model) as applied:
        steered = logits_of(model, ids)
    assert any(line.mean_strength for line in applied.report())
    assert not torch.equal(steered, plain)
