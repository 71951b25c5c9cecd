"""What a Steering says about itself: prompts and pictures for a pipeline, texts for a language model."""

from typing import Any

import pytest
import torch
from makers import random_steering
from pictures import steered_at

pytest.importorskip("diffusers")

import dsas
from dsas.model.identity import ModelIdentity
from dsas.model.subject import subject_of
from dsas.steering.subject_words import draws, in_words, told_settings
from dsas.testing import tiny_model
from dsas.testing.pipelines import PIPELINES, tiny_pipeline

READ: dict[str, Any] = {"texts": {"source": 4}, "examples": "text", "labels": "texts", "transform": "caa"}


@pytest.mark.parametrize("family", PIPELINES)
def test_the_card_of_a_pipeline_says_how_a_picture_is_drawn(family: str) -> None:
    pipeline = tiny_pipeline(family)
    steering = steered_at(pipeline, family)
    card = steering.card()
    assert "with steering.apply(pipeline):" in card
    assert "generate" not in card
    assert "tags: [dsas, activation-steering, diffusers, text-to-image]" in card
    assert repr(steering).startswith(f"Steering for a diffusers pipeline with {steering.model.model_class}: ")


def test_the_card_of_a_language_model_speaks_of_texts() -> None:
    steering = random_steering(tiny_model())
    assert "model.generate(...)" in steering.card()
    assert "tags: [dsas, activation-steering]\n" in steering.card()
    assert told_settings(steering.model, READ) == READ


def test_an_unknown_denoiser_is_told_by_how_its_prompts_were_read() -> None:
    model = ModelIdentity("NewTransformer3DModel", 8, 2, "f" * 16)
    assert not draws(model, {"reading": {"batch_size": 16}})
    drawing: Any = dsas.Drawing(pooling="position").as_dict()
    assert draws(model, {"reading": drawing})
    told = told_settings(model, {**READ, "reading": drawing})
    assert (told["prompts"], told["examples"], told["labels"]) == ({"source": 4}, "prompts", "positions")
    assert "texts" not in told


def test_a_vector_of_another_library_for_a_pipeline_is_told_by_its_denoiser() -> None:
    pipeline = tiny_pipeline("sd")
    rule = dsas.Rule(
        dsas.Site("unet.mid_block.resnets.0", layout="picture"), dsas.Addition(torch.ones(16)), dsas.Constant()
    )
    assert "pipeline" in dsas.Steering([rule], subject_of(pipeline).identity).card()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"source": 24, "skip_sinks": True, "site": None}, "source 24, skip_sinks yes, site none"),
        ({"chat": {"system": "Be brief.", "arguments": {}}}, "chat (system Be brief., arguments (none))"),
        ({"texts": [24, 48], "worth": 2.5}, "texts [24, 48], worth 2.5"),
        ({}, "none"),
        ("two\nlines", r"two\nlines"),
    ],
)
def test_settings_are_shown_in_words_each_on_one_line(value: Any, words: str) -> None:
    assert in_words(value) == words
