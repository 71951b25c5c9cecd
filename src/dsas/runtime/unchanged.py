"""Unchanged: rules whose regulators run as when they steer, but which change nothing."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Facts, Samples
from dsas.runtime.rule import Rule
from dsas.transforms.base import Transform


@final
class Unchanged(Transform):
    """Maps every activation to itself."""

    name: ClassVar[str] = "unchanged"
    has_opposite: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(formula="t", paper="-", left_out="-", flops="0")

    @classmethod
    def fit(cls, source: Samples, target: Samples) -> "Unchanged":
        """Return an unchanged one; there is nothing to learn."""
        return cls()

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return 0."""
        return torch.zeros_like(t)


def only_asked(rules: Sequence[Rule]) -> list[Rule]:
    """Return the rules that steer, at weight 1 and with a transform that changes nothing."""
    return [rule._replace(transform=Unchanged(), weight=1.0) for rule in rules if rule.weight > 0]
