"""Addition: T(t) = t + v with v = mean_T - mean_S, the difference of the pooled means.

Means are pooled over the tokens that count, or taken at the last one with `Reading(tokens="last")`.

Source: CAA, contrastive activation addition (arXiv 2312.06681), with unpaired sets; called "CAA" in DSAS
(arXiv 2512.03661, section 4). Limitations: the paired A/B answers of the original are not used.
"""

from typing import ClassVar, final

from dsas.methods.base import Facts, Samples
from dsas.methods.moments import Moments
from dsas.transforms.affine import Translation


@final
class Addition(Translation):
    """Adds the difference of the means to every token."""

    name: ClassVar[str] = "caa"
    facts: ClassVar[Facts] = Facts(
        formula="t + mean_T - mean_S", paper="CAA, arXiv 2312.06681", left_out="no paired answers A/B", flops="d"
    )

    @classmethod
    def fit(cls, source: Samples, target: Samples) -> "Addition":
        """Return t + mean(target) - mean(source), the means taken in float64."""
        return cls((target.double().mean(0) - source.double().mean(0)).float())

    @classmethod
    def fit_moments(cls, source: Moments, target: Moments) -> "Addition":
        """Return the same from moments."""
        return cls((target.mean - source.mean).float())
