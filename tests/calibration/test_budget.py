"""Budgets: damage against NumPy in float64, and what is refused."""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from makers import logits_of, random_steering

import dsas
from dsas.errors import OptionError
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = ["the door is open", "it rains", "Who goes there, friend or foe? " * 3]


@pytest.mark.parametrize(
    ("damage", "expected"), [("perplexity", 6 / 4), ("kl", 6.0), ("accuracy", -200.0)], ids=["ratio", "mean", "points"]
)
def test_damage_is_a_ratio_of_means_a_mean_or_a_difference_in_points(damage: Any, expected: float) -> None:
    budget = dsas.Budget(damage, 1.0)
    (found,) = budget.of_kind(np.ones((1, 3)), [3.0, 6.0, 9.0], [2.0, 4.0, 6.0])
    assert found == pytest.approx(expected)


def test_a_draw_counts_each_text_as_often_as_it_has_it_on_both_sides() -> None:
    found = dsas.Budget("perplexity", 1.0).of_kind(np.array([[2.0, 1.0, 0.0]]), [3.0, 6.0, 9.0], [1.0, 4.0, 7.0])
    assert found == pytest.approx([12 / 6])


def test_kinds_are_averaged_or_the_worst_of_them_counts() -> None:
    damages = np.array([[1.0, 4.0], [3.0, 2.0]])
    assert dsas.Budget("kl", 1.0).over_kinds(damages).tolist() == [2.0, 3.0]
    assert dsas.Budget("kl", 1.0, worst=True).over_kinds(damages).tolist() == [3.0, 4.0]


def test_kl_is_that_of_unsteered_to_steered_next_tokens_mean_over_the_tokens_of_a_text() -> None:
    model: Any = tiny_model()
    tokenizer = tiny_tokenizer()
    steering = random_steering(model)
    found = dsas.Budget("kl", 1.0).values(model, tokenizer, TEXTS, steering.apply(model, 0.7, record=False))
    for text, nats in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"][:50]])
        plain = logits_of(model, ids)[0].double().log_softmax(-1).numpy()
        with steering.apply(model, 0.7):
            moved = logits_of(model, ids)[0].double().log_softmax(-1).numpy()
        assert nats == pytest.approx((np.exp(plain) * (plain - moved)).sum(-1).mean(), rel=1e-4)


def test_perplexity_is_that_of_the_steered_model() -> None:
    from dsas.evaluation.perplexity import perplexity

    model: Any = tiny_model()
    steering = random_steering(model)
    budget = dsas.Budget("perplexity", 1.05)
    plain = budget.values(model, tiny_tokenizer(), TEXTS, nullcontext())
    moved = budget.values(model, tiny_tokenizer(), TEXTS, steering.apply(model, 1.0))
    assert plain == perplexity(model, tiny_tokenizer(), TEXTS).per_text.tolist()
    with steering.apply(model, 1.0):
        assert moved == perplexity(model, tiny_tokenizer(), TEXTS).per_text.tolist() != plain


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (dsas.Budget("perplexty", 1.05), "unknown budget 'perplexty'; closest: 'perplexity'"),  # pyright: ignore
        (dsas.Budget("kl", 0.0), "must be finite and > 0, got 0"),
        (dsas.Budget("kl", float("nan")), "must be finite and > 0"),
        (dsas.Budget("accuracy", 2.0), "needs its measure"),
        (dsas.Budget("kl", 0.1, on=("wikj",)), "on kind 'wikj'; closest: 'wiki'"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(budget: dsas.Budget, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        budget.check(["wiki", "news"])


def test_a_measure_gives_one_value_a_text() -> None:
    budget = dsas.Budget("accuracy", 2.0, measure=lambda model, tokenizer, texts: [1.0])
    with pytest.raises(OptionError, match="one value a text, 3: 1"):
        budget.values(None, None, TEXTS, nullcontext())
