"""Addition: T(t) = t + v with v = mean_T - mean_S, the difference of the pooled means.

Source: CAA, contrastive activation addition (arXiv 2312.06681), with unpaired sets; called "CAA" in DSAS
(arXiv 2512.03661, section 4). Left out: paired answers A/B of the original, the last-token and the PCA direction.
"""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from dsas.transforms.base import Transform


class Addition(Transform):
    """Adds one vector (dim,), in units of the activation, to every token."""

    name: ClassVar[str] = "caa"
    vector: Tensor

    def __init__(self, vector: Float[Tensor, " dim"]) -> None:
        """Keep the vector that is added."""
        super().__init__()
        self.keep(vector=vector)

    @classmethod
    def fit(cls, source: Float[Tensor, "text dim"], target: Float[Tensor, "text2 dim"]) -> "Addition":
        """Return t + mean(target) - mean(source), the means taken in float64."""
        return cls((target.double().mean(0) - source.double().mean(0)).float())

    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return the vector, seen at every token without being copied."""
        return self.vector.expand_as(t)
