"""Sums and multiples of Steerings: exact, or refused by site."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering
from torch import Tensor, nn

import dsas
from dsas.errors import OptionError
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH

SITE = "model.layers.1"
IDS = torch.arange(40, 55).view(3, 5)


@pytest.fixture
def model() -> Any:
    return tiny_model()


def adding(model: nn.Module, vector: Tensor, sites: Any = SITE, **options: Any) -> dsas.Steering:
    options = {"regulator": dsas.Constant(), **options}
    return random_steering(model, sites, transform=dsas.Addition(vector), **options)


def test_a_sum_adds_both_vectors_at_the_sites_of_both_and_keeps_the_others(model: Any) -> None:
    x, y = torch.randn(2, WIDTH)
    first, second = adding(model, x, ["model.layers.0", SITE]), adding(model, y, [SITE, "model.layers.2"])
    total = first + second
    assert [str(rule.site) for rule in total.rules] == ["model.layers.0", SITE, "model.layers.2"]
    for rule, vector in zip(total.rules, (x, x + y, y), strict=True):
        assert torch.equal(rule.transform.vector, vector)
    with total.apply(model, 0.7):
        summed = logits_of(model, IDS)
    with (first | second).apply(model, 0.7):
        torch.testing.assert_close(summed, logits_of(model, IDS), rtol=1e-4, atol=1e-4)
    assert torch.equal(first.rules[1].transform.vector, x)  # neither was changed


def test_a_sum_is_exact_for_regulators_that_are_the_same_to_the_bit_and_products_of_them(model: Any) -> None:
    def regulator() -> dsas.Regulator:
        return dsas.Product([dsas.Logistic(torch.arange(WIDTH) / 99, torch.tensor(0.1)), dsas.Schedule("all", 1)])

    x, y = torch.randn(2, WIDTH)
    total = adding(model, x, regulator=regulator()) + adding(model, y, regulator=regulator())
    assert torch.equal(total.rules[0].transform.vector, x + y)


@pytest.mark.parametrize(
    "other",
    [
        {"regulator": dsas.Constant(0.5)},
        {"regulator": dsas.Schedule("all")},
        {"weight": 0.5},
        {"regulator": dsas.Product([dsas.Constant(1.0), dsas.Constant(1.0)])},
    ],
    ids=["value", "kind", "weight", "product"],
)
def test_a_sum_that_would_not_be_exact_is_refused_by_site(model: Any, other: dict[str, Any]) -> None:
    first, second = adding(model, torch.ones(WIDTH)), adding(model, torch.ones(WIDTH), **other)
    with pytest.raises(OptionError, match=r"at model\.layers\.1 they differ; apply both .* with a \| b"):
        first + second


def test_a_sum_over_a_transform_that_adds_no_vector_is_refused_by_site(model: Any) -> None:
    first = adding(model, torch.ones(WIDTH))
    turn = random_steering(
        model, SITE, transform=dsas.Ablation(torch.ones(WIDTH), torch.tensor(0.0)), regulator=dsas.Constant()
    )
    for one, other in ((first, turn), (turn, first)):
        with pytest.raises(OptionError, match=r"only additions .* got Ablation at model\.layers\.1; set a strength"):
            one + other


def test_a_sum_over_two_models_is_refused(model: Any) -> None:
    with pytest.raises(OptionError, match="Steerings of different models cannot be added"):
        random_steering(model) + random_steering(tiny_model("gpt2"))


@pytest.mark.parametrize("factor", [2.0, 0.5, -1.0, 0.0])
def test_a_multiple_multiplies_every_vector_exactly_from_either_side(model: Any, factor: float) -> None:
    steering = random_steering(model)
    for multiple in (factor * steering, steering * factor):
        assert multiple.settings["multiplied by"] == factor
        for rule, old in zip(multiple.rules, steering.rules, strict=True):
            assert torch.equal(rule.transform.vector, factor * old.transform.vector)
            assert (rule.regulator, rule.site, rule.weight) == (old.regulator, old.site, old.weight)


def test_minus_one_times_a_steering_pushes_the_other_way_and_the_sum_of_both_does_nothing(model: Any) -> None:
    steering, site = adding(model, torch.randn(WIDTH), "model.layers.2"), "model.layers.2"
    seen: list[Tensor] = []
    model.model.norm.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (steering, -1.0 * steering, steering + -1.0 * steering):
            with one.apply(model):
                logits_of(model, IDS)
    vector = steering.rules[0].transform.get_buffer("vector")
    assert str(steering.rules[0].site) == site
    torch.testing.assert_close(seen[0] - seen[2], vector.expand_as(seen[0]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen[1] - seen[2], -vector.expand_as(seen[0]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [dsas.LinearTransport, dsas.GaussianTransport, dsas.Ablation, dsas.Rotation])
def test_a_multiple_of_what_adds_no_vector_is_refused_by_site(model: Any, kind: Any) -> None:
    transform = kind.fit(torch.randn(9, WIDTH) + 1, torch.randn(9, WIDTH) - 1)
    steering = random_steering(model, SITE, transform=transform)
    with pytest.raises(OptionError, match=rf"only additions .* got {kind.__name__} at model\.layers\.1; set"):
        -1.0 * steering


def test_sums_and_multiples_are_steerings_that_are_stored_like_any_other(model: Any, tmp_path: Path) -> None:
    made = 2.0 * adding(model, torch.randn(WIDTH)) + -1.0 * adding(model, torch.randn(WIDTH))
    made.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert again.digest() == made.digest()
    assert again.model == ModelIdentity.of(model)
    assert again.settings == made.settings
