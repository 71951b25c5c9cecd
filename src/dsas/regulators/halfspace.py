"""Half-space: h(t) = 1 where t . u > offset, 0 elsewhere.

u is the unit difference of the means, source minus control. The offset is 0 in the paper; "midpoint" puts the boundary
half-way between the means, as is needed on a residual stream, whose tokens share a large mean.

Source: adaptive angular steering (arXiv 2510.26243, section 3.3). Limitations: no soft boundary (use `logistic` for
one).
"""

from collections.abc import Callable
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Boundary, Labelled, held_out_accuracy
from dsas.methods.served_form import Projection, ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator

Place = Literal["origin", "midpoint"]


@final
class HalfSpace(Regulator):
    """Steers in full on one side of a plane: direction (dim,), offset in units of the activation."""

    name: ClassVar[str] = "halfspace"
    facts: ClassVar[Facts] = Facts(
        formula="1 where t . u > offset, else 0",
        paper="adaptive angular steering, arXiv 2510.26243",
        left_out="no soft boundary",
        flops="2 d",
    )
    direction: Tensor
    offset: Tensor

    def __init__(self, direction: Float[Tensor, " dim"], offset: Float[Tensor, ""]) -> None:
        """Keep the plane."""
        super().__init__()
        self.keep(direction=direction, offset=offset)

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        boundary: Place = "origin",
        folds: int = 5,
        seed: int = 0,
    ) -> FittedRegulator:
        """Return the half-space and its balanced accuracy over stratified folds; target is not looked at.

        boundary: through the "origin", or through the "midpoint" of the means. Raises OptionError for another value.
        """
        if boundary not in ("origin", "midpoint"):
            raise OptionError(f"boundary must be 'origin' or 'midpoint', got {boundary!r}")
        data, draw = Labelled.of(source, control), _between(boundary)
        plane = draw(data)
        regulator = cls(torch.from_numpy(plane.theta).float(), torch.tensor(-plane.bias, dtype=torch.float32))
        return FittedRegulator(regulator, held_out_accuracy(data, draw, folds=folds, seed=seed))

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return 1 beyond the plane and 0 before it; it is piecewise constant, so no gradient flows."""
        return (t.to(self.direction.dtype) @ self.direction > self.offset).float().unsqueeze(-1)

    def served_form(self) -> ServedGain:
        """Return the step at the plane."""
        return ServedGain(projections=(Projection(self.direction, -self.offset, "step"),))


def _between(place: Place) -> Callable[[Labelled], Boundary]:
    def draw(data: Labelled) -> Boundary:
        first, second = data.x[data.y == 1].mean(0), data.x[data.y == 0].mean(0)
        length = float(np.linalg.norm(first - second)) or 1.0
        theta = (first - second) / length
        return Boundary(theta, 0.0 if place == "origin" else float(-theta @ (first + second) / 2))

    return draw
