"""Scores that are not numbers are an error; a token that is ruled out is not."""

import pytest
import torch

from dsas.errors import ActivationError
from dsas.model.only_numbers import OnlyNumbers


def test_scores_come_back_as_they_were() -> None:
    scores = torch.tensor([[0.5, -torch.inf], [3e38, -3e38]])
    assert OnlyNumbers()(torch.zeros(2, 1, dtype=torch.long), scores) is scores


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_one_row_that_overflowed_is_enough_for_an_error(value: float) -> None:
    scores = torch.zeros(3, 4)
    scores[1, 2] = value
    with pytest.raises(ActivationError, match="scores of the next token are not numbers"):
        OnlyNumbers()(torch.zeros(3, 1, dtype=torch.long), scores)
