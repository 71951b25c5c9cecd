"""Ablation: T(t) = t - (t . u) u + level u: a token's component along one direction is replaced by a fixed amount.

u is the unit difference of the means, source minus target, and level is 0 (the direction is erased) or the target's
mean along u.

Source: directional ablation (arXiv 2406.11717, section 2.4); with a level, "affine concept editing" (arXiv 2411.09003).
Limitations: one direction only; the weights are not ablated.
"""

from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedEdit
from dsas.transforms.base import Transform


@final
class Ablation(Transform):
    """Replaces a token's component along a unit vector: direction (dim,), level in units of the activation."""

    name: ClassVar[str] = "ablation"
    facts: ClassVar[Facts] = Facts(
        formula="t - (t . u) u + level u, u = unit difference of means",
        paper="directional ablation, arXiv 2406.11717",
        left_out="one direction, no editing of weights",
        flops="4 d",
    )
    direction: Tensor
    level: Tensor

    def __init__(self, direction: Float[Tensor, " dim"], level: Float[Tensor, ""]) -> None:
        """Keep the direction and the level along it."""
        super().__init__()
        self.keep(direction=direction, level=level)

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, level: Literal["zero", "target"] = "zero") -> "Ablation":
        """Return the ablation of the difference of the means; level "target" leaves the target's mean along it."""
        if level not in ("zero", "target"):
            raise OptionError(f"level must be 'zero' or 'target', got {level!r}")
        s, t = source.double().mean(0), target.double().mean(0)
        direction = torch.nn.functional.normalize(s - t, dim=0)
        left = direction @ t if level == "target" else torch.zeros((), dtype=torch.float64)
        return cls(direction.float(), left.float())

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return (level - t . u) u."""
        wide = t.to(torch.promote_types(t.dtype, self.direction.dtype))
        direction = self.direction.to(wide.dtype)
        return (self.level - wide @ direction).unsqueeze(-1) * direction

    def served_form(self) -> ServedEdit:
        """Return level u + (-u . t) u."""
        return ServedEdit(AffineEdit(self.level * self.direction), (-self.direction,), (self.direction,))
