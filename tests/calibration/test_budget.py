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


@pytest.mark.parametrize(("damage", "expected"), [("mean-perplexity", 6 / 4), ("kl", 6.0), ("accuracy", -200.0)])
def test_damage_is_a_ratio_of_means_a_mean_or_a_difference_in_points(damage: Any, expected: float) -> None:
    steered, unsteered = ([(value, 1.0) for value in values] for values in ([3.0, 6.0, 9.0], [2.0, 4.0, 6.0]))
    (found,) = dsas.Budget(damage, 1.0).of_kind(np.ones((1, 3)), steered, unsteered)
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(("damage", "expected"), [("loss", [0.4, 0.5]), ("perplexity", np.exp([0.4, 0.5]))])
def test_log_loss_is_that_of_all_tokens_and_a_draw_counts_each_text_with_its_tokens_on_both_sides(
    damage: Any, expected: list[float]
) -> None:
    """Of 2, 8 and 30 tokens, each text's lose 1, 0.25 and 0.4 nats: (2 + 2 + 12) / 40, then (2 * 2 + 2) / 12."""
    unsteered = [(3.0, 2.0), (8.0, 8.0), (90.0, 30.0)]
    steered = [(5.0, 2.0), (10.0, 8.0), (102.0, 30.0)]
    found = dsas.Budget(damage, 1.0).of_kind(np.array([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]]), steered, unsteered)
    assert found == pytest.approx(expected)


def test_the_mean_of_perplexities_may_fall_where_every_token_loses() -> None:
    """One text in two surprises most, at 9 nats; there 2 tokens gain 0.1 each, while 98 of the other lose as much."""
    tokens, plain, moved = np.array([98.0, 2.0]), np.array([3.0, 9.0]), np.array([3.1, 8.9])
    both = [list(zip((losses * tokens).tolist(), tokens.tolist(), strict=True)) for losses in (moved, plain)]
    alone = [[(value, 1.0) for value in np.exp(losses).tolist()] for losses in (moved, plain)]
    assert dsas.Budget("perplexity", 1.0).of_kind(np.ones((1, 2)), *both)[0] == pytest.approx(np.exp(0.096))
    assert dsas.Budget("mean-perplexity", 1.0).of_kind(np.ones((1, 2)), *alone)[0] < 0.91


def test_kinds_are_averaged_or_the_worst_of_them_counts() -> None:
    damages = np.array([[1.0, 4.0], [3.0, 2.0]])
    assert dsas.Budget("kl", 1.0).over_kinds(damages).tolist() == [2.0, 3.0]
    assert dsas.Budget("kl", 1.0, worst=True).over_kinds(damages).tolist() == [3.0, 4.0]


def test_kl_is_that_of_unsteered_to_steered_next_tokens_mean_over_the_tokens_of_a_text() -> None:
    model: Any = tiny_model()
    tokenizer = tiny_tokenizer()
    steering = random_steering(model)
    found = dsas.Budget("kl", 1.0).values(model, tokenizer, TEXTS, steering.apply(model, 0.7, record=False))
    for text, (nats, count) in zip(TEXTS, found, strict=True):
        assert count == 1
        ids = torch.tensor([tokenizer(text)["input_ids"][:50]])
        plain = logits_of(model, ids)[0].double().log_softmax(-1).numpy()
        with steering.apply(model, 0.7):
            moved = logits_of(model, ids)[0].double().log_softmax(-1).numpy()
        assert nats == pytest.approx((np.exp(plain) * (plain - moved)).sum(-1).mean(), rel=1e-4)


def test_perplexity_is_that_of_the_steered_models_tokens_over_that_of_the_unsteered_ones() -> None:
    from dsas.evaluation.perplexity import perplexity

    model: Any = tiny_model()
    steering, read = random_steering(model), (model, tiny_tokenizer(), TEXTS)
    plain = perplexity(*read)
    with steering.apply(model, 1.0):
        moved = perplexity(*read)
    for damage, of in (("perplexity", "of_tokens"), ("mean-perplexity", "mean")):
        budget = dsas.Budget(damage, 1.05)  # pyright: ignore[reportArgumentType]
        found = budget.of_kind(
            np.ones((1, 3)), budget.values(*read, steering.apply(model, 1.0)), budget.values(*read, nullcontext())
        )
        assert found[0] == pytest.approx(getattr(moved, of) / getattr(plain, of), rel=1e-9)
    assert moved.of_tokens / plain.of_tokens != pytest.approx(moved.mean / plain.mean, rel=1e-3)


def test_budgets_of_one_measurement_share_it_and_others_do_not() -> None:
    names = {damage: dsas.Budget(damage, 1.0).name for damage in ("perplexity", "loss", "mean-perplexity", "kl")}  # pyright: ignore[reportArgumentType]
    assert names["perplexity"] == names["loss"]
    assert len(set(names.values())) == 3
    assert "perplexity" not in names.values()  # which is what checkpoints of means over texts are known by


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
    with pytest.raises(OptionError, match="one value per text, 3: 1"):
        budget.values(None, None, TEXTS, nullcontext())


def test_a_measure_of_perplexities_is_not_taken_for_one_of_log_losses() -> None:
    budget = dsas.Budget("perplexity", 1.05, measure=lambda model, tokenizer, texts: [12.5] * len(texts))
    with pytest.raises(OptionError, match=r"a pair \(nats, tokens\) per text, got 12.5; .* 'mean-perplexity'"):
        budget.values(None, None, TEXTS, nullcontext())
    pairs = dsas.Budget("accuracy", 1.05, measure=lambda model, tokenizer, texts: [(12.5, 2)] * len(texts))
    with pytest.raises(OptionError, match="a number per text"):
        pairs.values(None, None, TEXTS, nullcontext())
