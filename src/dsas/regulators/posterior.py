"""Posterior: which neurons of a token to steer, one value per neuron.

    h_j(t) = 1 where neuron j tells source from control and  N(t_j; mean_S, sd_S) > N(t_j; mean_T, sd_T),  else 0

Neuron j tells source from control when its AUROC, in whichever direction, is at least `least_auroc`. The comparison of
the two Gaussians is a quadratic in t_j, stored as its three coefficients: curve t^2 + slope t + level > 0.

Source: GAPS (arXiv 2609.01878), used together with the regulator of DSAS: `regulator="logistic*posterior"`.
Limitations: no soft posterior; the Gaussians are those of pooled samples, not of tokens.
"""

from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import Neurons, ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator

LEAST_SD = 1e-4


@final
class Posterior(Regulator):
    """Steers the neurons for which curve t^2 + slope t + level > 0, all three (dim,)."""

    name: ClassVar[str] = "posterior"
    facts: ClassVar[Facts] = Facts(
        formula="per neuron: 1 where N(t; mean_S, sd_S) > N(t; mean_T, sd_T) and AUROC(S, C) is high, else 0",
        paper="GAPS, arXiv 2609.01878",
        left_out="no soft posterior",
        flops="4 d",
    )
    curve: Tensor
    slope: Tensor
    level: Tensor

    def __init__(
        self, curve: Float[Tensor, " dim"], slope: Float[Tensor, " dim"], level: Float[Tensor, " dim"]
    ) -> None:
        """Keep the coefficients of twice the log-ratio of the Gaussians; level -1 alone never steers."""
        super().__init__()
        self.keep(curve=curve, slope=slope, level=level)

    @classmethod
    def fit(cls, source: Samples, control: Samples, target: Samples, *, least_auroc: float = 0.75) -> FittedRegulator:
        """Return the regulator, without an accuracy of its own; least_auroc in [0.5, 1].

        A neuron that is constant in source or target is never steered. Raises OptionError outside the range.
        """
        if not 0.5 <= least_auroc <= 1:
            raise OptionError(f"least_auroc must lie in [0.5, 1], got {least_auroc}")
        s, t = source.double(), target.double()
        (m, v), (n, w) = ((x.mean(0), x.var(0)) for x in (s, t))
        telling = (auroc(source, control) - 0.5).abs() + 0.5 >= least_auroc
        kept = telling & (v > LEAST_SD**2) & (w > LEAST_SD**2)
        curve, slope = 1 / w - 1 / v, 2 * (m / v - n / w)
        level = n.square() / w - m.square() / v + torch.log(w / v)
        never = torch.zeros_like(curve)
        parts = [torch.where(kept, part, other) for part, other in ((curve, never), (slope, never), (level, never - 1))]
        return FittedRegulator(cls(*(part.float() for part in parts)), accuracy=None)

    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token dim"]:
        """Return 1 or 0 for every neuron of every token; it is piecewise constant, so no gradient flows."""
        wide = t.to(self.curve.dtype)
        return (torch.addcmul(self.level, torch.addcmul(self.slope, wide, self.curve), wide) > 0).float()

    def served_form(self) -> ServedGain:
        """Return the coefficients of every neuron."""
        return ServedGain(neurons=(Neurons(self.curve, self.slope, self.level),))


def auroc(first: Float[Tensor, "sample dim"], second: Float[Tensor, "sample2 dim"]) -> Float[Tensor, " dim"]:
    """Return, for every neuron, the chance that a sample of `first` is above one of `second`; ties count half."""
    above = torch.zeros(first.shape[1], dtype=torch.float64)
    for sample in first:
        above += (second < sample).sum(0) + 0.5 * (second == sample).sum(0)
    return above / (len(first) * len(second))
