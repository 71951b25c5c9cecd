"""The tokens beside applied strengths are those that the text encoder was called with."""

from typing import Any

import pytest
import torch
from pictures import OPTIONS, steered_at

pytest.importorskip("diffusers")

import dsas
from dsas.model.drawing import Prompts, draw
from dsas.model.hooks import Hooks
from dsas.reports.heat import TokenHeat
from dsas.reports.pictures import one_of
from dsas.reports.prompt_words import PromptWords
from dsas.testing.pipelines import tiny_pipeline


def heats_of(pipeline: Any, branch: Any, **options: Any) -> list[list[TokenHeat]]:
    """Return the heats of two prompts, steered at the text encoder by a half."""
    steering = steered_at(pipeline, "sd", "text", regulator=dsas.Constant(0.5))
    drawing = dsas.Drawing(steps=1, options={**OPTIONS["sd"], **options}, branch=branch)
    words = PromptWords(pipeline, branch)
    with Hooks() as hooks, steering.apply(pipeline, 2.0, branch=branch) as applied:
        words.watch(hooks)
        draw(pipeline, Prompts([0, 1], ["red dog", "sky"], [0, 1]), drawing)
    maps = applied.maps()
    return [words.heats(one_of(maps, row), row) for row in (0, 1)]


def said(heat: TokenHeat) -> str:
    return "".join(heat.tokens[:-1]).replace(" ", "")


def test_each_prompt_has_its_own_tokens_and_one_entry_for_the_padding() -> None:
    dog, sky = heats_of(tiny_pipeline("sd"), "conditional")
    assert (said(dog[0]).startswith("reddog"), said(sky[0]).startswith("sky")) == (True, True)
    assert dog[0].tokens[-1].endswith("of padding")
    assert dog[0].values == pytest.approx([1.0] * len(dog[0].tokens))
    assert len(dog) == len({heat.label for heat in dog}) > 1  # a line for each layer


def test_in_the_unconditional_branch_they_are_the_negative_prompts() -> None:
    for one in heats_of(tiny_pipeline("sd"), "unconditional", negative_prompt="fog"):
        assert said(one[0]).startswith("fog")


def test_tokens_that_are_not_known_are_numbered() -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", "text")
    with steering.apply(pipeline) as applied:
        draw(pipeline, Prompts([0], ["red"], [0]), dsas.Drawing(steps=1, options=OPTIONS["sd"]))
    first, *_ = PromptWords(pipeline, "conditional").heats(one_of(applied.maps(), 0), 0)
    assert first.tokens[:2] == ["1 ", "2 "]
    assert torch.tensor(first.values).isfinite().all()
