"""Linear transport: T(t) = w t + b for each neuron, the straight line nearest to the optimal transport of the samples.

In one dimension optimal transport pairs the k-th smallest of the source with the k-th smallest of the target. With both
sorted, w is the least-squares slope of those pairs about their means and b = mean_T - w mean_S.

Source: Linear-AcT (arXiv 2410.23054, section 3, equation 7). Limitations: no
covariances between neurons; no weights on samples.
"""

from typing import ClassVar, final

from dsas.methods.base import Facts, Samples
from dsas.transforms.affine import Support, Transport, sorted_line, support_of


@final
class LinearTransport(Transport):
    """Maps every neuron by the straight line that fits its sorted samples best."""

    name: ClassVar[str] = "linear-act"
    facts: ClassVar[Facts] = Facts(
        formula="w t + b, least squares on sorted samples, per neuron inside the support",
        paper="Linear-AcT, arXiv 2410.23054",
        left_out="no covariances between neurons",
        flops="3 d",
    )

    @classmethod
    def fit(
        cls, source: Samples, target: Samples, *, support: Support = (0.0, 100.0), seed: int = 0
    ) -> "LinearTransport":
        """Return the map, computed in float64; of the larger set as many samples are drawn as the smaller one has.

        support: percentiles (low, high) of the source, or "everywhere". seed: seed of the draw. A neuron that is
        constant in the source is moved by the difference of its means.
        """
        return cls(*sorted_line(source, target, seed=seed), *support_of(source, support))
