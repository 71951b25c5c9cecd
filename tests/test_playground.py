"""Playground: what it needs to start."""

import sys

import pytest
from makers import random_steering

from dsas.errors import MissingExtraError, OptionError
from dsas.playground import playground
from dsas.testing import tiny_model, tiny_tokenizer


def test_a_playground_without_a_steering_or_a_strength_is_refused() -> None:
    model = tiny_model()
    with pytest.raises(OptionError, match="expected a Steering"):
        playground(model, tiny_tokenizer(), {})
    with pytest.raises(OptionError, match="strength > 0"):
        playground(model, tiny_tokenizer(), {"detox": random_steering(model)}, strength=0.0)


def test_without_gradio_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    model = tiny_model()
    with pytest.raises(MissingExtraError, match=r"dsas\[playground\]"):
        playground(model, tiny_tokenizer(), {"detox": random_steering(model)})
