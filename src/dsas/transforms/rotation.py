"""Rotation: a token is turned by an angle inside one plane, and keeps its norm.

    T(t) = t + (cos a - 1)(p u1 + q u2) + sin a (p u2 - q u1),    p = t . u1,  q = t . u2

The fit takes the plane of the two means, with u1 along mean_S and u2 along the part of mean_T orthogonal to it, and the
angle between the means, so that the direction of mean_S is turned into that of mean_T. The norm is kept where strength
x regulator is 1; below 1, a token moves along the chord.

Source: angular steering (arXiv 2510.26243, section 3), which takes the plane of a difference of means and a principal
component over layers, and sets the angle after the turn; here plane and angle come from one site's means. Limitations:
no such target angle; the paper's adaptive form is this with the regulator `halfspace`.
"""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from dsas.errors import OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedEdit
from dsas.transforms.base import Transform


@final
class Rotation(Transform):
    """Turns every token from `first` towards `second`, orthogonal unit vectors (dim,), by `angle` in radians."""

    name: ClassVar[str] = "rotation"
    facts: ClassVar[Facts] = Facts(
        formula="t turned by an angle in the plane (u1, u2); norm kept",
        paper="angular steering, arXiv 2510.26243",
        left_out="no target angle",
        flops="8 d",
    )
    first: Tensor
    second: Tensor
    angle: Tensor

    def __init__(self, first: Float[Tensor, " dim"], second: Float[Tensor, " dim"], angle: Float[Tensor, ""]) -> None:
        """Keep plane and angle."""
        super().__init__()
        self.keep(first=first, second=second, angle=angle)

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, turns: float = 1.0) -> "Rotation":
        """Return the turn from the source's mean to the target's; `turns` times that angle, finite.

        Raises OptionError for a mean of length 0, which has no direction.
        """
        if not math.isfinite(turns):
            raise OptionError(f"turns must be finite, got {turns}")
        s, t = source.double().mean(0), target.double().mean(0)
        if not (s.any() and t.any()):
            raise OptionError("a rotation needs two means that are not zero; use another transform at this site")
        first = normalize(s, dim=0)
        across = t - (t @ first) * first
        if across.norm() <= 1e-9 * t.norm():  # means on one line: any plane through it will do
            axis = torch.eye(len(first), dtype=first.dtype)[first.abs().argmin()]
            across = axis - (axis @ first) * first
        second = normalize(across, dim=0)
        angle = torch.atan2(t @ second, t @ first)
        return cls(first.float(), second.float(), (turns * angle).float())

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return the chord from t to the turned t."""
        wide = t.to(torch.promote_types(t.dtype, self.first.dtype))
        first, second = self.first.to(wide.dtype), self.second.to(wide.dtype)
        p, q = (wide @ first).unsqueeze(-1), (wide @ second).unsqueeze(-1)
        shrink, sine = torch.cos(self.angle) - 1, torch.sin(self.angle)
        return (shrink * p - sine * q) * first + (shrink * q + sine * p) * second

    def served_form(self) -> ServedEdit:
        """Return the chord as the vectors written for each of its two projections."""
        shrink, sine = torch.cos(self.angle) - 1, torch.sin(self.angle)
        writes = shrink * self.first + sine * self.second, shrink * self.second - sine * self.first
        return ServedEdit(AffineEdit(torch.zeros_like(self.first)), (self.first, self.second), writes)
