"""Filling: which Steering a cache was filled under, so that the next `apply` knows whether its state is still valid."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dsas.methods.base import same
from dsas.runtime.rule import Rule


class Filling:
    """Rules at a strength; two are equal if they do the same to every token."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, rules: Sequence[Rule], strength: Tensor, skip_sinks: bool) -> None:
        self._rules, self._strength, self._skip_sinks = tuple(rules), strength.detach(), skip_sinks

    def at(self, strength: Tensor) -> None:
        """Continue at another strength; existing caches stay valid."""
        self._strength = strength.detach()

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Filling)
            and self._skip_sinks == other._skip_sinks
            and torch.equal(self._strength, other._strength)
            and len(self._rules) == len(other._rules)
            and all(_alike(*pair) for pair in zip(self._rules, other._rules, strict=True))
        )


def _alike(one: Rule, other: Rule) -> bool:
    return one is other or (
        (one.site, one.weight) == (other.site, other.weight)
        and same(one.transform, other.transform)
        and same(one.regulator, other.regulator)
    )
