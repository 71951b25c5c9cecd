"""Rule: what happens at one site."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from dsas.errors import StrengthError
from dsas.model.sites import Site, labels
from dsas.model.strength import Strength, read_strength
from dsas.regulators.base import Regulator
from dsas.transforms.base import Transform


class Rule(NamedTuple):
    """What happens at one site.

    weight: factor in [0, 1] on the strength; 0 means that the site was not selected and is not steered.
    accuracy: held-out balanced accuracy in [0, 1] of telling source from control here; None when not measured.
    """

    site: Site
    transform: Transform
    regulator: Regulator
    weight: float = 1.0
    accuracy: float | None = None


def strength_for(rules: Sequence[Rule], strength: Strength) -> Float[Tensor, "*row"]:
    """Return a strength as `read_strength` does; below 0, the transforms of rules that steer must have an opposite.

    Raises StrengthError, naming the first that has none.
    """
    value = read_strength(strength)
    without = [rule for rule in rules if rule.weight > 0 and not rule.transform.has_opposite]
    if without and bool((value < 0).any()):
        raise StrengthError(
            f"strength must be >= 0 where a transform has no opposite, got {strength} and "
            f"{type(without[0].transform).__name__} at {without[0].site}: fit an addition or an affine map, or swap "
            "source and target"
        )
    return value


def weights_of(rules: Sequence[Rule]) -> dict[str, float]:
    """Return the weight of each rule, by the label of its site."""
    return dict(zip(labels([rule.site for rule in rules]), (rule.weight for rule in rules), strict=True))


def weighted(rules: Sequence[Rule], weights: Mapping[str, float]) -> list[Rule]:
    """Return the rules with new weights for the sites that are named by their labels."""
    new = {**weights_of(rules), **weights}
    return [rule._replace(weight=new[label]) for rule, label in zip(rules, weights_of(rules), strict=True)]
