"""Gaussian transport: T(t) = (sd_T / sd_S) (t - mean_S) + mean_T for each neuron, inside its support.

It is the optimal transport between two Gaussians. A neuron whose standard deviation in either set is at most `least_sd`
is not changed: the quotient would be meaningless.

Source: Gaussian-AcT (arXiv 2410.23054, section 3). Limitations: no covariances between
neurons.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Facts, Samples
from dsas.methods.moments import Moments
from dsas.transforms.affine import Support, Transport, extremes, support_of


@final
class GaussianTransport(Transport):
    """Gives every neuron the mean and the standard deviation that it has in the target."""

    name: ClassVar[str] = "gaussian-act"
    facts: ClassVar[Facts] = Facts(
        formula="(sd_T / sd_S) (t - mean_S) + mean_T, per neuron inside the support",
        paper="Gaussian-AcT, arXiv 2410.23054",
        left_out="no covariances between neurons",
        flops="3 d",
    )

    @classmethod
    def fit(
        cls, source: Samples, target: Samples, *, support: Support = (0.0, 100.0), least_sd: float = 1e-4
    ) -> "GaussianTransport":
        """Return the map, computed in float64 with the sample standard deviation.

        support: percentiles (low, high) of the source, or "everywhere". least_sd: in units of the activation, >= 0.
        """
        slope, offset = _line(Moments.of(source), Moments.of(target), least_sd)
        return cls(slope, offset, *support_of(source, support))

    @classmethod
    def fit_moments(
        cls, source: Moments, target: Moments, *, support: Support = (0.0, 100.0), least_sd: float = 1e-4
    ) -> "GaussianTransport | None":
        """Return the same from moments; None for a support within the extremes of the source."""
        ends = extremes(source, support)
        return None if ends is None else cls(*_line(source, target, least_sd), *ends)


def _line(s: Moments, t: Moments, least_sd: float) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    moves = (s.sd > least_sd) & (t.sd > least_sd)
    slope = torch.where(moves, t.sd / s.sd, 1.0)
    offset = torch.where(moves, t.mean - slope * s.mean, 0.0)
    return slope.float(), offset.float()
