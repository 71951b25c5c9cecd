"""The sign of a strength: below 0, the opposite direction where the transform has one."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import logits_of, random_steering

import dsas
from dsas.errors import StrengthError
from dsas.model.forward_pass import ForwardPass
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

SITE = "model.layers.2"
TOKENS = torch.arange(5, 17).view(2, 6)
AFFINE = {
    "addition": dsas.Addition(torch.linspace(-1, 1, WIDTH)),
    "linear": dsas.MeanTransport.fit(torch.randn(9, WIDTH), torch.randn(9, WIDTH) + 1),
}
NONE = {
    "ablation": lambda: dsas.Ablation.fit(torch.randn(8, WIDTH), torch.randn(8, WIDTH) + 1),
    "rotation": lambda: dsas.Rotation.fit(torch.randn(8, WIDTH), torch.randn(8, WIDTH) + 1),
}


def hidden(model: Any) -> torch.Tensor:
    """Return what leaves the site, as whoever comes after it reads it."""
    found: list[torch.Tensor] = []
    hook = model.get_submodule(SITE).register_forward_hook(lambda _m, _a, output: found.append(output))
    logits_of(model, TOKENS)
    hook.remove()
    return found[0]


@pytest.mark.parametrize("name", AFFINE)
@pytest.mark.parametrize("strength", [-0.7, [-0.7, 0.4], [0.0, -2.0]])
def test_below_0_tokens_move_by_the_same_step_the_other_way(name: str, strength: Any) -> None:
    model, transform = tiny_model(), AFFINE[name]
    steering = random_steering(model, SITE, transform=transform)
    plain = hidden(model)
    regulator = steering.rules[0].regulator
    with steering.apply(model, strength) as applied:
        steered = hidden(model)
    gate = regulator(plain, ForwardPass(*plain.shape[:2]))
    expected = plain + torch.tensor(strength).reshape(-1, 1, 1) * gate * transform.edit(plain)
    torch.testing.assert_close(steered, expected)
    trace = applied.trace()
    np.testing.assert_allclose(trace.strengths[0], (torch.tensor(strength).reshape(-1, 1) * gate[..., 0]), rtol=1e-5)
    shown = trace.row(0).values["strength"]
    assert bool((shown >= 0).all())
    np.testing.assert_allclose(shown[0], trace.strengths[0, 0].abs())


def test_forwards_and_back_again_by_an_addition_is_the_model_as_it_was() -> None:
    model = tiny_model()
    steering = random_steering(model, SITE, regulator=dsas.Constant())
    before = logits_of(model, TOKENS)
    with steering.apply(model, 0.8), steering.apply(model, -0.8):
        torch.testing.assert_close(logits_of(model, TOKENS), before)
    with steering.apply(model, -0.8):
        backwards = logits_of(model, TOKENS)
    with steering.fuse(model, -0.8):
        torch.testing.assert_close(logits_of(model, TOKENS), backwards)
    assert not torch.allclose(backwards, before)


@pytest.mark.parametrize("name", NONE)
def test_a_transform_without_an_opposite_is_named_before_anything_runs(name: str) -> None:
    model, transform = tiny_model(), NONE[name]()
    steering = random_steering(model, SITE, transform=transform)
    for way in (steering.apply, steering.fuse):
        with pytest.raises(StrengthError, match=rf"no opposite, got -0.5 and {type(transform).__name__} at {SITE}"):
            way(model, -0.5)
    with steering.apply(model, [0.5, 0.0]):
        logits_of(model, TOKENS)
