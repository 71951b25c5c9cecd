"""Located against the golden numbers, and on bags of tokens of which only some show the behaviour."""

from typing import Any

import pytest
import torch
from makers import check_golden_regulator

import dsas
from dsas.errors import OptionError
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.located import MOST


@pytest.mark.parametrize("rounds", [3, 0])
def test_the_numbers_are_those_of_the_reference(rounds: int) -> None:
    check_golden_regulator(dsas.Located, f"located {rounds}", tolerance=1e-2)


def bags(count: int, shown: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` examples of ten tokens in 8 dimensions, of which the first `shown` lie 5 standard deviations away;
    and the example of each token.
    """
    tokens = torch.randn(count, 10, 8)
    tokens[:, :shown, 0] += 5
    return tokens.flatten(0, 1), torch.arange(count).repeat_interleave(10)


def fitted(shown: int, **options: Any) -> Any:
    (source, of_source), (control, of_control) = bags(40, shown), bags(40, 0)
    return dsas.Located.fit(source, control, control, groups=torch.cat([of_source, of_control + 40]), **options)


def values(regulator: dsas.Regulator, tokens: torch.Tensor) -> torch.Tensor:
    return regulator(tokens[None], ForwardPass(1, len(tokens)))[0, :, 0]


def test_tokens_that_show_nothing_are_left_alone_though_their_example_is_of_the_source() -> None:
    found, plain = fitted(1).regulator, fitted(1, rounds=0).regulator
    tokens = torch.randn(2000, 8)
    there = tokens + 5 * torch.eye(8)[0]
    assert float(values(found, tokens).mean()) < 0.02
    assert float(values(found, there).mean()) > 0.9
    assert float(values(plain, tokens).mean()) > 0.3  # labelled by their example, tokens teach it to answer a half


def test_an_example_counts_as_source_when_one_of_its_tokens_does() -> None:
    assert fitted(1).accuracy > 0.8
    assert fitted(0).accuracy < 0.7


def test_more_tokens_than_are_read_are_read_evenly() -> None:
    source = torch.randn(MOST + 7, 3)
    source[-1000:, 0] += 9  # the last ones alone show it
    found = dsas.Located.fit(source, torch.randn(MOST, 3), source, folds=2).regulator
    assert float(values(found, torch.tensor([[9.0, 0, 0]]))) > 0.9


def test_where_nothing_can_be_told_the_answer_is_a_half() -> None:
    same = torch.ones(8, 3)
    assert float(values(dsas.Located.fit(same, same, same).regulator, torch.randn(1, 3))) == 0.5


@pytest.mark.parametrize("wrong", [{"false_positives": 0.0}, {"rounds": -1}, {"inverse_penalty": 0.0}, {"folds": 1}])
def test_options_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=r"expected false_positives in \(0, 1\)"):
        dsas.Located.fit(torch.randn(8, 3), torch.randn(8, 3), torch.randn(8, 3), **wrong)
