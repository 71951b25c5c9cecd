"""The strength of a Steering at work is set anew, eager and compiled, and nothing else changes."""

from typing import Any

import pytest
import torch
from makers import logits_of, random_steering

import dsas
from dsas.testing import tiny_model

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
STRENGTHS = (0.1, 0.3, 0.0, [0.2, 0.0], -0.4, [0.5, 0.1], 0.1)
REGULATORS = {
    "constant": dsas.Constant(0.5),
    "logistic": None,
    "rectified": dsas.Rectified(torch.ones(32), torch.tensor(0.1)),
    "evidence": dsas.Evidence(torch.ones(32), torch.tensor(0.1), torch.tensor(0.2)),
}


def steered(model: Any, steering: dsas.Steering, strength: Any) -> torch.Tensor:
    with steering.apply(model, strength):
        return logits_of(model, IDS)


@pytest.mark.parametrize("regulator", REGULATORS)
@pytest.mark.parametrize("first", [0.0, 0.2, [0.1, 0.2]])
def test_after_it_is_set_each_pass_is_that_of_a_fresh_apply_and_so_is_its_trace(regulator: str, first: Any) -> None:
    model = tiny_model("llama", layers=2)
    steering = random_steering(model, regulator=REGULATORS[regulator])
    with steering.apply(model, first) as applied:
        logits_of(model, IDS)
        for strength in STRENGTHS:
            expected = steered_alone(model, applied, steering, strength)
            applied.strength = strength
            torch.testing.assert_close(logits_of(model, IDS), expected, rtol=0, atol=0)
            if torch.as_tensor(strength).any():
                with steering.apply(tiny_model("llama", layers=2), strength) as other:
                    logits_of(other._model, IDS)
                torch.testing.assert_close(applied.trace().strengths, other.trace().strengths)
    assert dsas.installed(model) == []


def steered_alone(model: Any, applied: dsas.Applied, steering: dsas.Steering, strength: Any) -> torch.Tensor:
    """Return what a fresh apply gives on an equal model, beside the Steering that is at work on this one."""
    twin = tiny_model("llama", layers=2)
    twin.load_state_dict(model.state_dict())
    assert applied in dsas.installed(model) or not torch.as_tensor(applied.strength).any()
    return steered(twin, steering, strength)


def test_a_strength_that_is_none_is_refused_and_the_old_one_stays() -> None:
    model = tiny_model("llama", layers=1)
    with random_steering(model).apply(model, 0.2) as applied:
        expected = logits_of(model, IDS)
        with pytest.raises(dsas.StrengthError):
            applied.strength = float("nan")
        assert torch.equal(logits_of(model, IDS), expected)
    applied.strength = 0.4  # taken off: it is kept for the next time, and nothing is steered
    assert dsas.installed(model) == []


def test_a_cache_goes_on_at_the_strength_that_was_set_and_nobody_is_warned() -> None:
    model = tiny_model("llama", layers=2)
    steering = random_steering(model, regulator=REGULATORS["evidence"])
    with torch.no_grad(), steering.apply(model, 0.2) as applied:
        cache = model(input_ids=IDS, use_cache=True).past_key_values
        applied.strength = 0.4
        later = model(input_ids=IDS[:, :1], past_key_values=cache, use_cache=True)
        strengths = applied.trace().strengths
    assert torch.isfinite(later.logits).all()
    assert strengths.shape[-1] == 5
    assert strengths[..., :4].amax() <= 0.2 < strengths[..., 4].amax()


@pytest.mark.compile
@pytest.mark.parametrize("regulator", ["constant", "logistic", "rectified"])
def test_compiled_code_takes_another_strength_or_the_same_steering_again_without_being_made_again(
    regulator: str,
) -> None:
    torch.compiler.reset()
    model, made = tiny_model("llama", layers=2), [0]

    def compiler(graph: Any, _inputs: object) -> Any:
        made[0] += 1
        return graph.forward

    steering = random_steering(model, regulator=REGULATORS[regulator])
    expected = {strength: steered(model, steering, strength) for strength in (0.1, 0.2, 0.5)}
    compiled: Any = torch.compile(model, backend=compiler, fullgraph=True)
    plain = logits_of(compiled, IDS)
    with steering.apply(model, 0.1, record=False) as applied:
        torch.testing.assert_close(logits_of(compiled, IDS), expected[0.1])
        for strength in (0.2, 0.5):
            applied.strength = strength
            torch.testing.assert_close(logits_of(compiled, IDS), expected[strength])
    torch.testing.assert_close(logits_of(compiled, IDS), plain)
    for strength in (0.5, 0.1):
        with steering.apply(model, strength, record=False):
            torch.testing.assert_close(logits_of(compiled, IDS), expected[strength])
        torch.testing.assert_close(logits_of(compiled, IDS), plain)
    assert made == [2]
