"""Filling: two Steerings at work are one only where they do the same to every token."""

from typing import Any

import pytest
import torch
from makers import random_steering

import dsas
from dsas.runtime.filling import Filling
from dsas.runtime.rule import Rule
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model(layers=2)


def of(rules: Any, strength: Any = 1.0, *, skip_sinks: bool = False) -> Filling:
    return Filling(list(rules), torch.as_tensor(strength).reshape(-1), skip_sinks)


def test_rules_of_the_same_numbers_are_one_whoever_made_them_and_those_of_others_are_not(
    model: Any, tmp_path: Any
) -> None:
    steering = random_steering(model)
    rules, first = steering.rules, of(steering.rules)
    steering.save_pretrained(tmp_path / "steering")
    loaded = dsas.Steering.from_pretrained(tmp_path / "steering")
    assert first == of(loaded.rules)
    assert first == of(random_steering(model).rules)
    one = rules[0]
    other = {
        "weight": one._replace(weight=0.5),
        "transform": one._replace(transform=dsas.Addition(torch.ones(WIDTH))),
        "regulator": one._replace(regulator=dsas.Constant()),
        "site": one._replace(site=rules[1].site),
    }
    for name, changed in other.items():
        assert first != of([changed, *rules[1:]]), name
    assert first != of(rules[:1])
    assert of(rules[:1]) != first
    assert first != of(rules[::-1])


def test_how_strongly_and_where_is_a_part_of_it(model: Any) -> None:
    rules: tuple[Rule, ...] = tuple(random_steering(model).rules)
    assert of(rules, 0.5) == of(rules, 0.5)
    assert of(rules, 0.5) != of(rules, 0.25)
    assert of(rules, [0.5, 0.5]) != of(rules, 0.5)
    assert of(rules, skip_sinks=True) != of(rules)
    assert of(rules) != None  # noqa: E711
    assert of(rules) != rules


def test_a_strength_that_is_learned_is_compared_by_its_number_and_kept_without_its_gradients(model: Any) -> None:
    rules, learned = random_steering(model).rules, torch.tensor([0.5], requires_grad=True)
    filling = of(rules, 2 * learned)
    assert filling == of(rules, 1.0)
    assert not filling._strength.requires_grad
