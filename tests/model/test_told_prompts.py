"""Measures that read a given answer in one pass tell regulators where its prompt ends."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import random_steering

import dsas
from dsas.evaluation.choice import Question, choice_accuracy
from dsas.evaluation.divergence import divergence
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.perplexity import perplexity
from dsas.model.conversation import Completion
from dsas.model.told_prompts import prompts_told, told_prompts
from dsas.regulators.schedule import Part
from dsas.testing import tiny_model, tiny_tokenizer

PROMPTS = ["The door", "Say what you like: ", "ab", "A longer prompt than the others, by far"]
ANSWERS = [" is open", "no", " cdef", " ends"]
PAIRS = [Completion(prompt, answer) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]


def steered(model: Any, regulator: Any) -> dsas.Steering:
    return random_steering(model, regulator=regulator)


def losses_by_hand(model: Any, steering: dsas.Steering | None) -> list[float]:
    """Return the answers' losses, each row alone, its prompt's length given to `apply`."""
    found = []
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        first, end = (len(tiny_tokenizer()(text)["input_ids"]) for text in (prompt, prompt + answer))
        ids = torch.tensor([tiny_tokenizer()(prompt + answer)["input_ids"]])
        with torch.no_grad():
            if steering is None:
                logits = model(ids).logits
            else:
                with steering.apply(model, prompt_tokens=first):
                    logits = model(ids).logits
        logs = logits[0].log_softmax(-1)
        found.append(-float(np.mean([logs[at - 1, ids[0, at]].item() for at in range(first, end)])))
    return found


@pytest.mark.parametrize("part", ["generated", "prompt"])
def test_what_steers_a_part_of_the_row_is_measured_on_that_part_of_given_answers(part: Part) -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = steered(model, dsas.Schedule(part))
    plain, expected = losses_by_hand(model, None), losses_by_hand(model, steering)
    assert np.abs(np.subtract(plain, expected)).max() > 1e-3
    with steering.apply(model):
        got = perplexity(model, tokenizer, PAIRS, batch_size=3).losses
    np.testing.assert_allclose(got, expected, atol=1e-5)
    curve = Yardstick(model, tokenizer, source=PAIRS, control={"same": PAIRS}).losses(steering.apply(model))
    np.testing.assert_allclose(curve.source, np.subtract(expected, plain), atol=1e-5)
    assert divergence(model, tokenizer, PAIRS, lambda: steering.apply(model)).per_text.min() > 0


def test_choices_are_answers_to_their_questions() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    questions = [Question(prompt, (answer, " zz"), 0) for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    steering = steered(model, dsas.Schedule("generated"))
    with steering.apply(model):
        found = choice_accuracy(model, tokenizer, questions, length="tokens").scores
    expected = losses_by_hand(model, steering)
    np.testing.assert_allclose([own[0] for own in found], np.negative(expected), atol=1e-5)


def test_a_text_that_answers_nothing_is_a_prompt_and_what_apply_is_told_counts_more() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    generated = steered(model, dsas.Schedule("generated"))
    plain = perplexity(model, tokenizer, texts).losses
    with generated.apply(model):
        assert perplexity(model, tokenizer, texts).losses.tolist() == plain.tolist()
    with generated.apply(model, prompt_tokens=1000):
        np.testing.assert_allclose(perplexity(model, tokenizer, PAIRS).losses, losses_by_hand(model, None), atol=1e-5)


def test_nothing_is_told_after_an_error() -> None:
    def fail() -> None:
        with told_prompts([3, 4]):
            assert prompts_told() is not None
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert prompts_told() is None
