"""Gaussian transport: T(t) = (sd_T / sd_S) (t - mean_S) + mean_T for each neuron, inside its support.

It is the optimal transport between two Gaussians. A neuron whose standard deviation in either set is at most `least_sd`
is not changed: the quotient would be meaningless.

Source: Gaussian-AcT (arXiv 2410.23054, section 3). Limitations: no covariances between
neurons.
"""

from typing import ClassVar, final

import torch

from dsas.methods.base import Facts, Samples
from dsas.transforms.affine import Support, Transport, support_of


@final
class GaussianTransport(Transport):
    """Gives every neuron the mean and the standard deviation that it has in the target."""

    name: ClassVar[str] = "gaussian-act"
    facts: ClassVar[Facts] = Facts(
        formula="(sd_T / sd_S) (t - mean_S) + mean_T, per neuron inside the support",
        paper="Gaussian-AcT, arXiv 2410.23054",
        left_out="covariances between neurons",
        flops="3 d",
    )

    @classmethod
    def fit(
        cls, source: Samples, target: Samples, *, support: Support = (0.0, 100.0), least_sd: float = 1e-4
    ) -> "GaussianTransport":
        """Return the map, computed in float64 with the sample standard deviation.

        support: percentiles (low, high) of the source, or "everywhere". least_sd: in units of the activation, >= 0.
        """
        s, t = source.double(), target.double()
        moves = (s.std(0) > least_sd) & (t.std(0) > least_sd)
        slope = torch.where(moves, t.std(0) / s.std(0), 1.0)
        offset = torch.where(moves, t.mean(0) - slope * s.mean(0), 0.0)
        return cls(slope.float(), offset.float(), *support_of(source, support))
