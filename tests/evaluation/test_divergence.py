from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from makers import Position, hooks_on, random_steering

from dsas.errors import OptionError, TextsError
from dsas.evaluation.divergence import divergence
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = ["The door is open.", "Tea", "A long walk along the river bank, in the rain", "It is late"]


def by_hand(model, steered, text: str, cut: int = 50) -> float:
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"][:cut]])
    with torch.no_grad():
        before = model(input_ids=ids).logits[0].double().numpy()
        with steered():
            after = model(input_ids=ids).logits[0].double().numpy()
    p, q = (np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in (before, after))
    return float((p * np.log(p / q)).sum(-1).mean())


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("regulator", [None, Position()])
def test_it_equals_the_definition_in_float64_for_any_batch_size(regulator, batch_size):
    model = tiny_model()
    steering = random_steering(model, regulator=regulator)
    steered = lambda: steering.apply(model, 0.2, record=False)  # noqa: E731
    result = divergence(model, tiny_tokenizer(), TEXTS, steered, batch_size=batch_size)
    expected = [by_hand(model, steered, text) for text in TEXTS]
    np.testing.assert_allclose(result.per_text, expected, rtol=1e-3)
    assert result.mean == pytest.approx(np.mean(expected), rel=1e-3)
    assert min(expected) > 1e-3
    assert hooks_on(model) == 0
    cut = divergence(model, tiny_tokenizer(), TEXTS, steered, max_tokens=4)
    np.testing.assert_allclose(cut.per_text, [by_hand(model, steered, text, 4) for text in TEXTS], rtol=1e-3)


def test_a_model_that_was_not_steered_diverges_by_exactly_nothing():
    assert divergence(tiny_model(), tiny_tokenizer(), TEXTS, nullcontext).per_text.tolist() == [0] * 4


def test_the_model_runs_once_unsteered_and_once_steered_a_batch():
    model, events = tiny_model(), []
    model.register_forward_pre_hook(lambda *_: events.append("pass"))

    @contextmanager
    def steered():
        events.append("on")
        yield
        events.append("off")

    divergence(model, tiny_tokenizer(), TEXTS, steered, batch_size=2)
    assert events == ["pass", "on", "pass", "off"] * 2


def test_texts_and_options_out_of_range_are_refused():
    with pytest.raises(TextsError, match="got none"):
        divergence(tiny_model(), tiny_tokenizer(), [], nullcontext)
    with pytest.raises(OptionError, match="max_tokens >= 1"):
        divergence(tiny_model(), tiny_tokenizer(), TEXTS, nullcontext, max_tokens=0)
    with pytest.raises(OptionError, match="batch size"):
        divergence(tiny_model(), tiny_tokenizer(), TEXTS, nullcontext, batch_size=0)
