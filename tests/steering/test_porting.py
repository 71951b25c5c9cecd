"""Porting: what is said of a relative is what its own activations say, and the verdict follows from it."""

import warnings
from math import sqrt
from typing import Any

import pytest
import torch
from torch import nn

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.identity import ModelIdentity
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.pipelines import tiny_pipeline

SOURCE = [f"SHUT UP, {word} FOOLS!" for word in ("YOU", "ALL", "TWO", "MY", "SUCH", "OLD")]
CONTROL = [f"the {word} is there" for word in ("door", "cat", "rain", "old tree", "man", "word", "sea")]


@pytest.fixture(scope="module")
def fitted() -> dsas.Steering:
    words = ("ONE", "HIS", "HER", "RED", "NEW", "BIG", "BAD")
    sets = {
        "source": [f"SHUT UP, {word} FOOLS!" for word in words],
        "control": [f"the {word.lower()} one is there" for word in words],
    }
    options = {"regulator": "logistic", "selection": "all", "progress": False}
    return dsas.fit(tiny_model(), tiny_tokenizer(), **sets, target=sets["control"], **options)


def turned(steering: dsas.Steering, *sites: int) -> dsas.Steering:
    """Return a Steering whose regulators at these sites are high where they were low."""
    rules = list(steering.rules)
    for site in sites:
        regulator: Any = rules[site].regulator
        rules[site] = rules[site]._replace(regulator=dsas.Logistic(-regulator.theta, -regulator.bias))
    return dsas.Steering(rules, steering.model)


def scores_by_hand(model: Any, steering: dsas.Steering, site: int, texts: list[str]) -> list[float]:
    regulator: Any = steering.rules[site].regulator
    seen: list[float] = []

    def look(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append(float(torch.sigmoid(output[0, 1:].detach() @ regulator.theta + regulator.bias).mean()))

    handle = model.model.layers[site].register_forward_hook(look)
    for text in texts:
        model(**tiny_tokenizer()(text, return_tensors="pt"))
    handle.remove()
    return seen


def test_the_auroc_of_a_site_counts_the_pairs_in_which_the_source_text_scores_higher(fitted: dsas.Steering) -> None:
    model = tiny_model(seed=1)
    found = fitted.port(model, tiny_tokenizer(), source=SOURCE, control=CONTROL, least=0.0)
    assert [site.site for site in found.sites] == [f"model.layers.{number}" for number in range(3)]
    for number, site in enumerate(found.sites):
        source, control = (scores_by_hand(model, fitted, number, texts) for texts in (SOURCE, CONTROL))
        higher = sum(one > other for one in source for other in control)
        assert site.auroc == pytest.approx(higher / (len(SOURCE) * len(CONTROL)))
        assert site.on_source == pytest.approx(sum(source) / len(source), abs=1e-5)
        assert site.on_control == pytest.approx(sum(control) / len(control), abs=1e-5)


def test_the_ends_of_an_interval_are_as_far_from_the_auroc_as_its_standard_error_there(fitted: dsas.Steering) -> None:
    found = fitted.port(tiny_model(seed=1), tiny_tokenizer(), source=SOURCE, control=CONTROL, least=0.0)
    m, n = len(SOURCE), len(CONTROL)
    for site in found.sites:
        assert site.auroc is not None
        for end in (site.low, site.high):
            assert end is not None
            q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)  # Hanley and McNeil 1982, with equal halves of m + n
            half = (m + n) / 2 - 1
            spread = (end * (1 - end) + half * (q1 - end**2) + half * (q2 - end**2)) / (m * n)
            assert end in (0.0, 1.0) or abs(end - site.auroc) == pytest.approx(1.96 * sqrt(spread), rel=1e-6)


@pytest.mark.parametrize(
    ("sites", "verdict", "weights"),
    [
        ((), "fits", [1, 1, 1]),
        ((1,), "fits with weights as shown", [1, 0, 1]),
        ((0, 2), "refit these sites", [0, 1, 0]),
    ],
)
def test_a_site_that_tells_no_more_is_left_out_and_the_verdict_counts_those_that_do(
    fitted: dsas.Steering, sites: tuple[int, ...], verdict: str, weights: list[float]
) -> None:
    found = turned(fitted, *sites).port(tiny_model(), tiny_tokenizer(), source=SOURCE, control=CONTROL)
    assert (found.verdict, found.differences) == (verdict, ())
    assert [rule.weight for rule in found.steering.rules] == [site.weight for site in found.sites] == weights
    assert found.refit() == [f"model.layers.{site}" for site in sites]


def test_a_ported_steering_is_of_the_new_model_and_no_more_a_relative_of_it(fitted: dsas.Steering) -> None:
    model = tiny_model(seed=1)
    found = fitted.port(model, tiny_tokenizer(), source=SOURCE, control=CONTROL, least=0.0)
    assert found.differences == ("their values differ",)
    assert found.steering.settings["ported from"] == fitted.model.as_dict()
    with pytest.warns(DsasWarning, match=r"not measured here; steering.port\(...\)"):
        fitted.apply(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found.steering.apply(model)


def test_a_regulator_that_looks_at_no_token_has_nothing_to_tell_and_holds() -> None:
    model = tiny_model()
    rules = [dsas.Rule(site, dsas.Addition(torch.ones(32)), dsas.Constant()) for site in dsas.find_sites(model)]
    steering = dsas.Steering(rules, ModelIdentity.of(model))
    found = steering.port(model, tiny_tokenizer(), source=SOURCE, control=CONTROL)
    assert found.verdict == "fits"
    assert {(site.auroc, site.low, site.weight) for site in found.sites} == {(None, None, 1.0)}


def test_what_cannot_be_ported_is_refused(fitted: dsas.Steering) -> None:
    given: Any = {"source": SOURCE, "control": CONTROL}
    with pytest.raises(OptionError, match="least is an AUROC from 0 to 1, got 2"):
        fitted.port(tiny_model(), tiny_tokenizer(), **given, least=2.0)
    with pytest.raises(TextsError, match="control must hold at least 4 texts, got 2"):
        fitted.port(tiny_model(), tiny_tokenizer(), source=SOURCE, control=CONTROL[:2])
    idle = dsas.Steering([rule._replace(weight=0.0) for rule in fitted.rules], fitted.model)
    with pytest.raises(OptionError, match="expected a Steering with a site that is steered"):
        idle.port(tiny_model(), tiny_tokenizer(), **given)
    with pytest.raises(OptionError, match="needs a language model, got an image pipeline"):
        fitted.port(tiny_pipeline(), None, **given)
