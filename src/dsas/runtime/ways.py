"""Ways: how each rule edits at the current strength, which may be changed while a Steering is applied."""

from collections.abc import Sequence

from torch import Tensor

from dsas.runtime.edit import Way, way_of
from dsas.runtime.filling import Filling
from dsas.runtime.rule import Rule
from dsas.runtime.summing import add_up_together


class Ways:
    """The way of each rule, in their order; None where nothing is done because the strength is 0.

    now: read at every call of a hook, so that each site takes one way or the other, never half of both. filling: what
    caches were filled under, at any strength.
    """

    def __init__(self, rules: Sequence[Rule], strength: Tensor, *, skip_sinks: bool, detail: bool) -> None:
        self._rules, self._asked = list(rules), {"skip_sinks": skip_sinks, "detail": detail}
        self.now: list[Way | None] = [None] * len(self._rules)
        self.filling = Filling(rules, strength, skip_sinks)
        self.strength = strength
        self.at(strength)

    @property
    def are_off(self) -> bool:
        """Whether there is nothing to do at any site."""
        return not bool(self.strength.detach().any()) and not self.strength.requires_grad

    def at(self, strength: Tensor) -> None:
        """Continue at another strength, one number or one per row, site after site."""
        self.strength = strength
        self.filling.at(strength)
        for number, rule in enumerate(self._rules):
            factors = strength * rule.weight
            self.now[number] = None if self.are_off else way_of(rule.transform, rule.regulator, factors, **self._asked)
        add_up_together(self.now)
