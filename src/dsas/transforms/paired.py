"""Paired map: the affine map that takes each source activation nearest to its own target activation.

    T(t) = t + slope (t - centre) + shift,      centre = mean_S,  shift = mean_T - mean_S
    slope = argmin over matrices of  sum over pairs of |T(s_i) - g_i|^2 + penalty n v |slope|^2

with v the variance of the source, averaged over neurons, so that `penalty` has no unit. It is a ridge regression of the
pair's difference on the source: an infinite penalty is CAA, which adds the same to every token; with a smaller one, the
addition depends on the token. If sets are read by position, each position of a source example is paired with the same
position of its target example, so the pairs must be alike except for the concept: captions that differ in one word,
drawn from the same noise.

Source: this project (docs/lab/findings.md); least squares. Affine maps of means and covariances, which need no pairs,
are in arXiv 2402.09631. Limitations: a full matrix, so dim times the cost of an affine edit per token; the i-th members
of both sets must belong together; for sets of different sizes the slope is 0, which `dsas.fit` refuses.
"""

import math
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.transforms.base import Transform


@final
class PairedMap(Transform):
    """Adds shift (dim,), and slope (dim, dim) times how far the token is from `centre` (dim,)."""

    name: ClassVar[str] = "paired"
    facts: ClassVar[Facts] = Facts(
        formula="t + slope (t - mean_S) + mean_T - mean_S, slope by ridge regression over pairs",
        paper="-",
        left_out="needs sets that form pairs",
        flops="2 d^2",
    )
    has_opposite: ClassVar[bool] = True
    pairs: ClassVar[bool] = True
    slope: Tensor
    centre: Tensor
    shift: Tensor

    def __init__(
        self, slope: Float[Tensor, "dim dim"], centre: Float[Tensor, " dim"], shift: Float[Tensor, " dim"]
    ) -> None:
        """Keep the map."""
        super().__init__()
        self.keep(slope=slope, centre=centre, shift=shift)

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, penalty: float = 0.01) -> "PairedMap":
        """Return the map, computed in float64; penalty > 0, in units of the source's variance. Raises OptionError."""
        if not (penalty > 0 and math.isfinite(penalty)):
            raise OptionError(f"penalty must be > 0 and finite, got {penalty}")
        s, t = source.double(), target.double()
        centre, shift = s.mean(0), t.mean(0) - s.mean(0)
        slope = torch.zeros(s.shape[1], s.shape[1], dtype=s.dtype)
        if len(s) == len(t):
            away = s - centre
            variance = away.square().mean().clamp(min=1e-30)
            system = away.T @ away + penalty * len(s) * variance * torch.eye(s.shape[1], dtype=s.dtype)
            slope = torch.linalg.solve(system, away.T @ (t - s - shift))
        return cls(slope.T.float().contiguous(), centre.float(), shift.float())

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return shift + slope (t - centre), in float32 or better."""
        wide = t.to(torch.promote_types(t.dtype, self.slope.dtype))
        slope, centre, shift = (part.to(wide.dtype) for part in (self.slope, self.centre, self.shift))
        return torch.nn.functional.linear(wide - centre, slope, shift)
