"""The paired map against the golden numbers, and what least squares must give."""

from functools import partial
from typing import Any

import pytest
import torch
from makers import check_golden_transform

import dsas
from dsas.errors import OptionError, TextsError
from dsas.fitting.method_names import takes_pairs, transform_fit
from dsas.testing import tiny_model, tiny_tokenizer


@pytest.mark.parametrize("penalty", [0.01, 2.0])
def test_the_map_is_that_of_the_reference(penalty: float) -> None:
    check_golden_transform(dsas.PairedMap, f"paired {penalty}")


def test_an_affine_map_that_made_the_pairs_is_found_again() -> None:
    source, t = torch.randn(60, 6), torch.randn(2, 3, 6)
    matrix, offset = torch.randn(6, 6), torch.randn(6)
    fitted = dsas.PairedMap.fit(source, source @ matrix + offset, penalty=1e-9)
    torch.testing.assert_close(fitted(t), t @ matrix + offset, atol=1e-3, rtol=1e-3)


def test_all_penalty_is_caa_and_so_are_sets_without_pairs() -> None:
    source, target, t = torch.randn(12, 6), torch.randn(12, 6) + 1, torch.randn(2, 3, 6)
    plain = dsas.Addition.fit(source, target)
    torch.testing.assert_close(dsas.PairedMap.fit(source, target, penalty=1e9).edit(t), plain.edit(t))
    unequal = dsas.PairedMap.fit(source, target[:9])
    torch.testing.assert_close(unequal.edit(t), dsas.Addition.fit(source, target[:9]).edit(t))
    assert not unequal.slope.any()


def test_a_pair_that_is_the_same_on_both_sides_stays_where_it_is() -> None:
    """Half of the tokens carry a concept along one axis and move along another; the others are their own target."""
    concept = torch.tensor([1.0, 0, 0, 0]).repeat(40, 1) + 0.1 * torch.randn(40, 4) * torch.tensor([0.0, 1, 1, 1])
    rest = 0.1 * torch.randn(40, 4) * torch.tensor([0.0, 1, 1, 1])
    moved = concept + torch.tensor([-1.0, 1, 0, 0])
    fitted = dsas.PairedMap.fit(torch.cat([concept, rest]), torch.cat([moved, rest]), penalty=1e-6)
    torch.testing.assert_close(fitted(rest[None]), rest[None], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(fitted(concept[None]), moved[None], atol=1e-3, rtol=1e-3)


def test_fit_asks_for_a_target_for_each_source_and_for_a_penalty_above_zero() -> None:
    texts: dict[str, Any] = {name: [f"{name} {n}" for n in range(5)] for name in ("source", "control")}
    with pytest.raises(TextsError, match=r"learns from pairs, .*got 5 and 4; 'linear-act' needs no pairs"):
        dsas.fit(tiny_model(), tiny_tokenizer(), **texts, target=["a", "b", "c", "d"], transform="paired")
    assert takes_pairs(partial(dsas.PairedMap.fit, penalty=1.0))
    assert not takes_pairs(transform_fit("caa"))
    for penalty in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(OptionError, match="penalty must be > 0 and finite"):
            dsas.PairedMap.fit(torch.randn(5, 3), torch.randn(5, 3), penalty=penalty)
