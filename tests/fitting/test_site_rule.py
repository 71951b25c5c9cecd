"""Which sites are steered: the best are taken, at the boundary as documented, and in the order of the model."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import dsas
from dsas.regulators.base import FittedRegulator
from dsas.testing import tiny_model, tiny_tokenizer

SETS = {
    name: [f"{start} {n}" for n in range(4)]
    for name, start in (("source", "SHUT UP"), ("control", "the door"), ("target", "thank you"))
}
ACCURACIES = (0.6, 0.9, 0.5, 0.8, 0.95, 0.7)  # of three layers and their MLPs, in the order of the model


def weights(accuracies: Sequence[float | None], **options: Any) -> list[float]:
    """Return the weights of sites at which a regulator has these accuracies, one after another."""
    left = list(accuracies)

    def told(source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(dsas.Constant(), left.pop(0))

    steering = dsas.fit(
        tiny_model(), tiny_tokenizer(), **SETS, regulator=told, sites=["residual", "mlp"], progress=False, **options
    )
    assert [rule.accuracy for rule in steering.rules] == list(accuracies)
    return [rule.weight for rule in steering.rules]


def test_top_steers_the_most_accurate_sites_and_no_others() -> None:
    assert weights(ACCURACIES, selection=dsas.Top(1)) == [0, 0, 0, 0, 1, 0]
    assert weights(ACCURACIES, selection=dsas.Top(3)) == [0, 1, 0, 1, 1, 0]
    assert weights(ACCURACIES, selection="top") == [1] * 6


def test_of_sites_that_are_equally_good_top_steers_the_first() -> None:
    assert weights([0.7, 0.9, 0.9, 0.9, 0.7, 0.7], selection=dsas.Top(2)) == [0, 1, 1, 0, 0, 0]


def test_a_threshold_is_reached_by_the_site_that_is_exactly_as_accurate() -> None:
    assert weights(ACCURACIES, selection=dsas.Threshold(0.8)) == [0, 1, 0, 1, 1, 0]


def test_smooth_weights_rise_from_nothing_at_chance_to_one() -> None:
    found = weights(ACCURACIES, selection="smooth")
    assert found == pytest.approx([0.2, 0.8, 0.0, 0.6, 0.9, 0.4])
    assert all(a <= b for a, b in pairwise(sorted(found)))


def test_where_the_regulator_learns_nothing_top_goes_by_how_well_a_boundary_tells_the_sets_apart() -> None:
    """Layer 1 is made blind to the text, so that a boundary there can only guess."""
    model = tiny_model()
    model.model.layers[1].mlp.down_proj.weight.data.zero_()
    sites = ["model.layers.0.mlp", "model.layers.1.mlp", "model.layers.2.mlp"]
    steering = dsas.fit(
        model, tiny_tokenizer(), **SETS, regulator="constant", sites=sites, selection=dsas.Top(2), progress=False
    )
    assert [rule.weight for rule in steering.rules] == [1, 0, 1]
    assert steering.rules[1].accuracy == 0.5
    assert not bool(torch.any(steering.rules[1].transform.get_buffer("vector")))
