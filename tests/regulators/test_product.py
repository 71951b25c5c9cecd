"""Product against the golden numbers, from its factors by hand, and through files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from makers import check_golden_regulator, logits_of, random_steering, unchecked

import dsas
from dsas.errors import OptionError
from dsas.fitting.method_names import regulator_fit
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.regulators.base import Regulator
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

LOGISTIC = dsas.Logistic(torch.randn(8), torch.tensor(0.2))


def test_a_product_of_names_has_the_values_and_the_accuracy_of_the_reference() -> None:
    check_golden_regulator(dsas.Product, "product", of=[dsas.Logistic, dsas.Posterior], tolerance=1e-2)


def test_the_value_is_the_product_of_the_factors_values() -> None:
    t = torch.randn(2, 3, 8)
    factors = [LOGISTIC, dsas.Constant(0.5), dsas.HalfSpace(torch.randn(8), torch.tensor(0.1))]
    expected = torch.sigmoid(t @ LOGISTIC.theta + 0.2) * 0.5 * (t @ factors[2].direction > 0.1)
    torch.testing.assert_close(dsas.Product(factors)(t, ForwardPass(2, 3)).squeeze(-1), expected)


def test_one_value_a_token_times_one_a_neuron_is_one_a_neuron_in_either_order() -> None:
    t = torch.randn(2, 3, 8)
    posterior = dsas.Posterior(torch.zeros(8), torch.ones(8), torch.zeros(8))  # positive neurons
    expected = torch.sigmoid(t @ LOGISTIC.theta + 0.2).unsqueeze(-1) * (t > 0)
    for factors in ([LOGISTIC, posterior], [posterior, LOGISTIC]):
        value = dsas.Product(factors)(t, ForwardPass(2, 3))
        assert value.shape == (2, 3, 8)
        torch.testing.assert_close(value, expected)


def test_the_accuracy_is_the_least_that_a_factor_has_and_none_where_none_has_one() -> None:
    source, control = torch.randn(30, 8) + torch.tensor([1.0] + [0.0] * 7) + 3, torch.randn(30, 8) + 3
    sets = (source, control, control)
    accuracies = [kind.fit(*sets).accuracy for kind in (dsas.Logistic, dsas.HalfSpace)]
    assert accuracies[0] != accuracies[1]
    for name in ("logistic*halfspace", "halfspace*posterior*logistic", "constant * logistic * halfspace"):
        assert regulator_fit(name)(*sets).accuracy == min(accuracies)
    assert regulator_fit("logistic*constant")(*sets).accuracy == accuracies[0]
    assert regulator_fit("constant*posterior")(*sets).accuracy is None


def test_it_reads_the_step_as_soon_as_a_factor_does() -> None:
    assert not dsas.Product([LOGISTIC, dsas.Constant()]).reads_forward_pass
    product = dsas.Product([LOGISTIC, dsas.Schedule("prompt")])
    assert product.reads_forward_pass
    t = torch.randn(1, 4, 8)
    values = product(t, ForwardPass(1, 4, history=Sequences(1, prompt_tokens=torch.tensor([2]))))
    assert (values > 0).flatten().tolist() == [True, True, False, False]


def test_two_factors_of_one_kind_do_not_share_a_memory() -> None:
    yes, no = (dsas.Cast(torch.tensor(way), torch.tensor(0.5)) for way in ([1.0, 0.0], [0.0, 1.0]))
    either = torch.tensor([[[1.0, 0.0]] * 3])
    history = Sequences(1)
    history.begin(0, 3)
    product = dsas.Product([yes, dsas.Product([yes, dsas.Constant(2.0)])])
    assert product(either, ForwardPass(1, 3, history=history)).flatten().tolist() == [0, 2, 2]
    history.end()
    history.begin(3, 1)
    assert float(product(either[:, :1], ForwardPass(1, 1, past=3, history=history))) == 2
    assert dsas.Product([yes, no])(either, ForwardPass(1, 3)).flatten().tolist() == [0, 0, 0]


def nested() -> Regulator:
    inner = dsas.Product([dsas.Cast(torch.randn(WIDTH), torch.tensor(0.2), above=False), dsas.Schedule("all", 1, 9)])
    outer = dsas.Posterior(*torch.randn(3, WIDTH))
    return dsas.Product([dsas.Logistic(torch.randn(WIDTH), torch.tensor(-0.1)), inner, outer, dsas.Constant(0.5)])


def test_a_product_in_a_product_comes_back_from_files_to_the_bit(tmp_path: Path) -> None:
    model, ids = tiny_model(), torch.arange(40, 52).view(2, 6)
    steering = random_steering(model, regulator=nested())
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert repr(again) == repr(steering)
    assert again.digest() == steering.digest()
    inner = again.rules[0].regulator.factors[1]
    assert [type(factor) for factor in inner.factors] == [dsas.Cast, dsas.Schedule]
    assert (inner.factors[0].above, inner.factors[1].stop) == (False, 9)
    found = []
    for one in (steering, again):
        with one.apply(model) as applied:
            found += [logits_of(model, ids), applied.trace().strengths]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[1], found[3])


def test_a_product_is_fitted_by_the_names_of_its_factors_and_said_to_be_that() -> None:
    texts = {name: [f"{start} {n}" for n in range(5)] for name, start in (("source", "SHUT UP"), ("control", "the"))}
    steering = dsas.fit(
        tiny_model(), tiny_tokenizer(), **texts, target=texts["control"], regulator="logistic*posterior", progress=False
    )
    assert steering.settings["regulator"] == "logistic*posterior"
    for rule in steering.rules:
        assert [type(factor) for factor in rule.regulator.factors] == [dsas.Logistic, dsas.Posterior]
        assert rule.accuracy is not None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("logistic*posteriro", "unknown regulator 'posteriro'; closest: 'posterior'"),
        ("logistic*", "unknown regulator ''"),
        ("product", r"write a product as the names of its factors, such as 'logistic\*posterior'"),
        ("logistic*product", "write a product as the names of its factors"),
    ],
)
def test_a_product_of_names_that_are_not_there_is_refused(name: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        regulator_fit(name)


@pytest.mark.parametrize("factors", [[], [LOGISTIC]], ids=["none", "one"])
def test_a_product_of_fewer_than_two_is_refused(factors: Any) -> None:
    with pytest.raises(OptionError, match="a product needs at least two regulators, got"):
        unchecked(dsas.Product.__init__)(dsas.Product.__new__(dsas.Product), factors)
