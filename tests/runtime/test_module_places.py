"""Places: what others put where a Steering is at work."""

import warnings
from typing import Any

import pytest
import torch
from makers import random_steering
from torch import nn

from dsas.errors import DsasWarning, StateError
from dsas.runtime.module_places import Places
from dsas.testing import tiny_model


class Around(nn.Module):
    """What a library puts in the place of a layer."""

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer


def test_a_steered_module_that_is_another_one_now_is_refused_and_another_module_is_warned_of_once() -> None:
    model: Any = tiny_model()
    places = Places(model, random_steering(model, "mlp").rules)
    places.check()
    model.model.layers[0].self_attn.q_proj = Around(model.model.layers[0].self_attn.q_proj)
    with pytest.warns(DsasWarning, match="modules were added to the model"):
        places.check()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places.check()
    model.model.layers[1].mlp = Around(model.model.layers[1].mlp)
    with pytest.raises(StateError, match=r"1 steered modules, such as model.layers.1.mlp, were replaced"):
        places.check()


def test_a_layer_that_is_compiled_afterwards_is_the_same_module() -> None:
    model: Any = tiny_model()
    places = Places(model, random_steering(model, ["model.layers.1"]).rules)
    model.model.layers[1] = torch.compile(model.model.layers[1], backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        places.check()
    model.model.layers[1] = tiny_model().get_submodule("model.layers.1")
    with pytest.raises(StateError, match="were replaced"):
        places.check()
