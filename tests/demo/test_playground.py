"""Playground: what it needs to start."""

import sys
from unittest.mock import MagicMock

import pytest
from makers import random_steering

import dsas
from dsas.demo.playground import playground
from dsas.errors import MissingExtraError, OptionError
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


def test_the_slider_begins_at_the_strength_of_the_steering_that_is_chosen_unless_one_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gradio = MagicMock()
    monkeypatch.setitem(sys.modules, "gradio", gradio)
    model = tiny_model()
    plain = random_steering(model)
    found = dsas.Calibration(0.25, (), (), None, {}, {}, None, plain.digest(), "0" * 16, "0.1")
    steerings = {"calibrated": plain.calibrated(found), "plain": plain}

    playground(model, tiny_tokenizer(), steerings)
    slider = gradio.Slider.call_args_list[0]
    assert (*slider.args, slider.kwargs["value"]) == (0, 1.0, 0.25)
    choose = gradio.Dropdown.return_value.change.call_args_list[0].args[0]
    choose("plain")
    assert gradio.Slider.call_args.kwargs == {"maximum": 4.0, "value": 1.0}

    gradio.reset_mock()
    playground(model, tiny_tokenizer(), steerings, strength=2.0)
    slider = gradio.Slider.call_args_list[0]
    assert (*slider.args, slider.kwargs["value"]) == (0, 8.0, 2.0)
