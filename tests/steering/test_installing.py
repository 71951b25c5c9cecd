"""Installing: what is put on a model until it is taken off has every option that was given, alone and composed."""

from typing import Any

import pytest
import torch
from makers import Position, hooks_on, logits_of, random_steering
from pictures import close, drawn, steered_at
from torch import Tensor

import dsas
from dsas.errors import StateError
from dsas.testing import tiny_model
from dsas.testing.pipelines import tiny_pipeline

IDS = torch.arange(40, 55).view(3, 5)
SITE = "model.layers.0"


def alone(steering: dsas.Steering, model: Any, strength: Any = 1.0, **options: Any) -> tuple[Any, dsas.Applied]:
    """Install a Steering; return what takes it off, and what tells of it."""
    applied = steering.apply(model, strength, **options).install()
    return applied, applied


def composed(steering: dsas.Steering, model: Any, strength: Any = 1.0, **options: Any) -> tuple[Any, dsas.Applied]:
    """Install two, of which the second does nothing of its own."""
    silent = dsas.Steering([rule._replace(weight=0.0) for rule in steering.rules], steering.model)
    applied = (steering | silent).apply(model, [strength, 1.0], **options).install()
    return applied, applied[0]


ways = pytest.mark.parametrize("install", [alone, composed])


def strengths(installed: tuple[Any, dsas.Applied], model: Any) -> Tensor:
    """Return the strengths (row, token) of one pass at the first site, and take the hooks off."""
    logits_of(model, IDS)
    whole, applied = installed
    whole.remove()
    assert hooks_on(model) == 0
    return applied.trace().strengths[0]


@ways
def test_sinks_are_skipped_where_that_was_asked_for(install: Any) -> None:
    model = tiny_model()
    steering = random_steering(model, SITE, regulator=dsas.Constant())
    assert strengths(install(steering, model, skip_sinks=True), model).tolist() == [[0, 1, 1, 1, 1]] * 3
    assert strengths(install(steering, model, skip_sinks=False), model).tolist() == [[1] * 5] * 3


@ways
def test_the_lengths_of_prompts_are_those_that_were_given(install: Any) -> None:
    model = tiny_model()
    steering = random_steering(model, SITE, regulator=dsas.Schedule("prompt"))
    found = strengths(install(steering, model, prompt_tokens=[1, 2, 4]), model)
    assert found.sum(1).tolist() == [1, 2, 4]


@ways
def test_each_row_has_the_strength_that_was_given_for_it(install: Any) -> None:
    model = tiny_model()
    steering = random_steering(model, SITE, regulator=Position())
    found = strengths(install(steering, model, [0.0, 1.0, 2.0]), model)
    assert found[:, -1].tolist() == [0, 5, 10]


@ways
def test_what_is_recorded_is_what_was_asked_for(install: Any) -> None:
    model = tiny_model()
    steering = random_steering(model, SITE)
    for record in (True, False, "doses"):
        whole, applied = install(steering, model, record=record)
        logits_of(model, IDS)
        whole.remove()
        if record is False:
            with pytest.raises(StateError, match="recording is off"):
                applied.trace()
        else:
            assert (applied.trace().doses is not None) == (record == "doses")


@ways
def test_the_branch_of_guidance_is_the_one_that_was_asked_for(install: Any) -> None:
    pipeline = tiny_pipeline("sd")
    steering = steered_at(pipeline, "sd", ["unet.mid_block.attentions.0"], regulator=dsas.Constant())
    seen = []
    for branch in ("conditional", "unconditional", "both"):
        whole, _ = install(steering, pipeline, branch=branch)
        pictures = drawn(pipeline, "sd")
        whole.remove()
        with steering.apply(pipeline, branch=branch):
            assert torch.equal(drawn(pipeline, "sd"), pictures)
        seen.append(pictures)
    assert not close(seen[0], seen[1])
    assert not close(seen[0], seen[2])
    assert not close(seen[1], seen[2])


@ways
def test_the_calibrated_strength_is_the_one_at_which_it_is_installed_when_none_is_given(install: Any) -> None:
    model = tiny_model()
    steering = random_steering(model, SITE, regulator=dsas.Constant())
    steering = steering.calibrated(calibration(steering, 0.25))
    assert strengths(install(steering, model, None), model).tolist() == [[0.25] * 5] * 3


def calibration(steering: dsas.Steering, strength: float) -> dsas.Calibration:
    return dsas.Calibration(strength, (), (), None, {}, {}, None, steering.digest(), "", "")
