"""Steered logits against equation (1) written out by hand in float64: the hooks here are torch's own, not dsas's."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from makers import PROMPTS, logits_of
from torch import Tensor

import dsas
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH
from dsas.testing.passes import padded

# Two sites of each family: one module that gives a tensor, and one that gives a tuple or the residual stream.
SITES = {
    "llama": ("model.layers.0.mlp", "model.layers.1"),
    "gpt2": ("transformer.h.0.attn", "transformer.h.1"),
    "gemma3": ("model.layers.0.post_feedforward_layernorm", "model.layers.2"),
}
STRENGTHS = [0.5, 1.0, 1.7]
WEIGHTS = [1.0, 0.6]


def edited_by_hand(vector: Tensor, theta: Tensor, bias: Tensor, weight: float) -> Callable[..., Any]:
    """Return a plain forward hook that adds strength * weight * sigmoid(theta . t + bias) * vector, in float64."""

    def hook(_module: Any, _inputs: Any, output: Any) -> Any:
        t = output[0] if isinstance(output, tuple) else output
        assert t.dtype == torch.float64
        changed = t.clone()
        for row, strength in enumerate(STRENGTHS):
            for token in range(t.shape[1]):
                gate = 1 / (1 + torch.exp(-(t[row, token].dot(theta) + bias)))
                changed[row, token] = t[row, token] + strength * weight * gate * vector
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    return hook


@pytest.mark.parametrize("family", SITES)
def test_steered_logits_of_two_sites_are_those_of_a_float64_computation_by_hand(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    inputs = padded([torch.tensor(tokenizer(prompt)["input_ids"]) for prompt in PROMPTS], "right", 0)
    parts = [(torch.randn(WIDTH), 0.3 * torch.randn(WIDTH), 0.3 * torch.randn(())) for _ in range(2)]
    rules = [
        dsas.Rule(dsas.Site(path), dsas.Addition(vector), dsas.Logistic(theta, bias), weight)
        for path, (vector, theta, bias), weight in zip(SITES[family], parts, WEIGHTS, strict=True)
    ]
    steering = dsas.Steering(rules, dsas.steering.steering.ModelIdentity.of(model))
    with steering.apply(model, STRENGTHS):
        steered = logits_of(model, **renamed(inputs))

    precise = copy.deepcopy(model).double()
    plain = logits_of(precise, **renamed(inputs))
    for path, part, weight in zip(SITES[family], parts, WEIGHTS, strict=True):
        precise.get_submodule(path).register_forward_hook(edited_by_hand(*(x.double() for x in part), weight))
    expected = logits_of(precise, **renamed(inputs))

    real = inputs["attention_mask"].bool()
    error = (steered.double() - expected)[real].norm() / expected[real].norm()
    moved = (expected - plain)[real].norm() / expected[real].norm()
    assert error < 1e-5
    assert moved > 0.05  # far more than the tolerance: a site that is left out would be seen


def renamed(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"ids" if name == "input_ids" else name: value for name, value in inputs.items()}


@pytest.mark.parametrize("family", SITES)
def test_strength_0_and_steering_removed_give_the_same_bits_as_the_model_alone(family: str) -> None:
    model, ids = tiny_model(family), torch.arange(24).view(2, 12)
    plain = logits_of(model, ids)
    rules = [dsas.Rule(dsas.Site(path), dsas.Addition(torch.ones(WIDTH)), dsas.Constant()) for path in SITES[family]]
    steering = dsas.Steering(rules, dsas.steering.steering.ModelIdentity.of(model))
    for strength in (0.0, [0.0, 0.0]):
        with steering.apply(model, strength):
            assert torch.equal(logits_of(model, ids), plain)
    with steering.apply(model):
        assert not torch.equal(logits_of(model, ids), plain)
    assert torch.equal(logits_of(model, ids), plain)
