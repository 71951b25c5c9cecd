"""Mean transport: T(t) = t - mean_S + mean_T, for each neuron inside its support.

With the support "everywhere", the default, this is the map of CAA; it has its own name so that results can be told
apart, and may have a support, like Gaussian and linear transport.

Source: Mean-AcT (arXiv 2410.23054, section 3). Limitations: it is fitted incrementally only with
`Reading(incremental=True)`.
"""

from typing import ClassVar, final

import torch

from dsas.methods.base import Facts, Samples
from dsas.methods.moments import Moments
from dsas.transforms.affine import Support, Transport, extremes, support_of


@final
class MeanTransport(Transport):
    """Moves every neuron by the difference of its means."""

    name: ClassVar[str] = "mean-act"
    facts: ClassVar[Facts] = Facts(
        formula="t - mean_S + mean_T", paper="Mean-AcT, arXiv 2410.23054", left_out="-", flops="2 d"
    )

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, support: Support = "everywhere") -> "MeanTransport":
        """Return the map, computed in float64; support: percentiles (low, high) of the source, or "everywhere"."""
        offset = (target.double().mean(0) - source.double().mean(0)).float()
        return cls(torch.ones_like(offset), offset, *support_of(source, support))

    @classmethod
    def fit_moments(
        cls, source: Moments, target: Moments, *, support: Support = "everywhere"
    ) -> "MeanTransport | None":
        """Return the same from moments; None for a support within the extremes of the source."""
        ends = extremes(source, support)
        offset = (target.mean - source.mean).float()
        return None if ends is None else cls(torch.ones_like(offset), offset, *ends)
