"""Token tuning: what is known of a regulator by the tokens of texts it did not see, and what the fit says of it."""

from typing import Any

import numpy as np
import pytest
import torch
from makers import hooks_on

import dsas
from dsas.fitting.token_tuning import HeldOutValues
from dsas.methods.tuned_boundary import TokenScores
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH


def words(letters: str, count: int, seed: int, length: int = 12) -> list[str]:
    random = np.random.default_rng(seed)
    return ["".join(random.choice(list(letters), size=length)) for _ in range(count)]


def planted(share: float, **options: Any) -> tuple[Any, dsas.Steering]:
    """Return a model whose capitals lie along a direction, and a fit on words of which a share are capitals."""
    model, tokenizer = tiny_model(), tiny_tokenizer()
    direction = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0)
    capitals = torch.tensor(tokenizer("ABCDEFGHIJ")["input_ids"])
    model.model.embed_tokens.weight.data[capitals] += 3.0 * direction
    mixed = "ABCDEFGHIJ" + "abcdefghij" * round(1 / share - 1)
    sets = {"source": words(mixed, 40, 0), "control": words("abcdefghij", 40, 1), "target": words("abcdefghij", 40, 2)}
    return model, dsas.fit(model, tokenizer, **sets, sites=dsas.Site("model.embed_tokens"), progress=False, **options)


def mean_value(model: Any, steering: dsas.Steering, texts: list[str]) -> float:
    """Return the mean regulator value over tokens but the first, when nothing is moved."""
    rules = [rule._replace(transform=dsas.Addition(torch.zeros(WIDTH))) for rule in steering.rules]
    still = dsas.Steering(rules, steering.model)
    ids = torch.tensor(tiny_tokenizer()(texts)["input_ids"])
    with still.apply(model, 1.0) as applied, torch.no_grad():
        model(ids)
    return float(applied.trace().strengths[:, :, 1:].mean())


def test_the_default_fires_on_control_texts_it_never_saw_at_the_share_that_fit_promises() -> None:
    model, steering = planted(0.5)
    assert isinstance(steering.rules[0].regulator, dsas.Evidence)
    held = steering.settings["held_out_tokens"]
    assert held["control"] == pytest.approx(0.02, abs=1e-3)
    assert mean_value(model, steering, words("abcdefghij", 200, 7)) == pytest.approx(0.02, abs=0.015)
    source = mean_value(model, steering, words("ABCDEFGHIJabcdefghij", 200, 8))
    assert source == pytest.approx(held["source"], abs=0.1)
    assert source > 0.5
    assert hooks_on(model) == 0


def test_a_probe_is_tuned_by_tokens_and_not_by_means_of_texts() -> None:
    model, steering = planted(0.5, regulator="probe")
    assert mean_value(model, steering, words("abcdefghij", 200, 7)) == pytest.approx(0.02, abs=0.015)


def test_texts_of_one_token_leave_the_regulator_as_pooled_vectors_tuned_it() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    sets = {"source": list("ABCDEFGH"), "control": list("abcdefgh"), "target": list("ijklmnop")}
    steering = dsas.fit(model, tokenizer, **sets, sites="residual", selection="all", progress=False)
    assert "held_out_tokens" not in steering.settings


def test_what_regulators_are_worth_is_what_the_formulas_give() -> None:
    """Three values on 4 source and 4 control tokens at 2 sites; the shares of the bins by hand."""
    one = TokenScores([np.array([1.0, 1.0]), np.array([0.5, 0.0])], [np.array([0.0, 0.0, 0.5, 0.0])])
    found = HeldOutValues.of([one, one])
    assert found.source == pytest.approx(0.625)
    assert found.control == pytest.approx(0.125)
    assert found.worth == pytest.approx(5.0)
    assert found.worth_square == pytest.approx(0.625 / 0.25)
    assert found.auroc == pytest.approx((4 + 4 + 3.5 + 1.5) / 16)
    assert found.texts == (2, 1)
    assert found.tokens == (4, 4)
    # bins of 0, 0.5 and 1, half a token added to each: source 1.5, 1.5, 2.5 and control 3.5, 1.5, 0.5, of 5.5
    assert found.limit == pytest.approx(np.sqrt((1.5**2 / 3.5 + 1.5**2 / 1.5 + 2.5**2 / 0.5) / 5.5))


def test_a_regulator_that_cannot_tell_is_worth_no_more_than_none() -> None:
    random = np.random.default_rng(0)
    same = TokenScores(*([random.uniform(0.4, 0.6, 5000)] for _ in range(2)))
    found = HeldOutValues.of([same])
    assert (found.worth, found.worth_square, found.limit) == pytest.approx((1, 1, 1), abs=0.03)
    assert found.auroc == pytest.approx(0.5, abs=0.02)
