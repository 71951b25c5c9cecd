"""Constant: h(t) = value, which is ordinary steering: every token of every input, equally.

Source: the unconditional baseline of every steering method (arXiv 2512.03661, equation 1 with h = 1).
"""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError, shown
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator


@final
class Constant(Regulator):
    """The same value >= 0 for every token."""

    name: ClassVar[str] = "constant"
    facts: ClassVar[Facts] = Facts(formula="1", paper="ordinary steering", left_out="-", flops="0")
    value: float

    def __init__(self, value: float = 1.0) -> None:
        """Keep the value. Raises OptionError unless it is a finite number >= 0."""
        super().__init__()
        if not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise OptionError(f"expected a constant regulator of a finite value >= 0, got {shown(value)}")
        self.keep(value=value)

    @classmethod
    def fit(cls, source: Samples, control: Samples, target: Samples) -> FittedRegulator:
        """Return the constant 1; nothing is learned, so there is no accuracy."""
        return FittedRegulator(cls(), accuracy=None)

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return the value for every token."""
        return t.new_full((1, 1, 1), self.value, dtype=torch.float32).expand(*t.shape[:2], 1)

    def served_form(self) -> ServedGain:
        """Return the value as a factor."""
        return ServedGain(self.value)
