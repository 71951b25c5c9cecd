"""Places: modules that others put where a Steering is at work."""

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from torch import nn

from dsas.errors import DsasWarning, StateError
from dsas.model.hooks import Hooks
from dsas.runtime.module_places import Places
from dsas.testing import tiny_model


class Around(nn.Module):
    """What a library puts in the place of a layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer


def noted(model: nn.Module, patterns: Any) -> Any:
    """Return the check of places that were noted."""
    places = Places(model, random_steering(model, patterns).rules)
    places.note()
    hooks = Hooks()
    hooks.on_call(model, lambda _args, _kwargs: None)
    return partial(places.check, hooks)


def test_a_steered_module_that_is_another_one_now_is_refused_and_another_module_is_warned_of_once() -> None:
    model: Any = tiny_model()
    check = noted(model, "mlp")
    check()
    model.model.layers[0].self_attn.q_proj = Around(model.model.layers[0].self_attn.q_proj)
    with pytest.warns(DsasWarning, match="modules were added to the model"):
        check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check()
    model.model.layers[1].mlp = Around(model.model.layers[1].mlp)
    with pytest.raises(StateError, match=r"1 steered modules, such as model.layers.1.mlp, were replaced"):
        check()


def test_a_trace_of_modules_that_were_replaced_while_they_were_steered_is_refused() -> None:
    model: Any = tiny_model()
    with random_steering(model, "mlp").apply(model) as applied:
        logits_of(model, torch.tensor([[1, 2, 3]]))
        applied.trace()
        model.model.layers[1].mlp = Around(model.model.layers[1].mlp)
        for read in (applied.trace, applied.report):
            with pytest.raises(StateError, match=r"1 steered modules, such as model.layers.1.mlp, were replaced"):
                read()
    applied.trace()


def test_a_prompt_that_would_run_past_a_module_that_was_replaced_is_refused() -> None:
    model: Any = tiny_model()
    with random_steering(model, "mlp").apply(model, record=False):
        model.model.layers[1].mlp = tiny_model(seed=1).get_submodule("model.layers.1.mlp")
        with pytest.raises(StateError, match=r"1 steered modules, such as model.layers.1.mlp, were replaced"):
            logits_of(model, torch.tensor([[1, 2, 3]]))


def test_a_layer_that_is_compiled_afterwards_is_the_same_module() -> None:
    model: Any = tiny_model()
    check = noted(model, ["model.layers.1"])
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check()
    model.model.layers[1] = tiny_model().get_submodule("model.layers.1")
    with pytest.raises(StateError, match="were replaced"):
        check()
