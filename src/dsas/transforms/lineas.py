"""LinEAS: T(t) = w t + b for each neuron, everywhere; what `dsas.train` learns end to end through the whole model.

The map is per site, but the loss that shapes it is one for all sites: the one-dimensional Wasserstein distances between
steered source and unsteered target at every site at once (`dsas.training`). That needs the model. `fit`, which sees
only pooled activations, cannot do it: it returns the closed-form line of Linear-AcT at this site, without a support. So
`dsas.fit(transform="lineas")` is Linear-AcT everywhere, not LinEAS, and a possible start for training.

Source: LinEAS (arXiv 2503.10679, section 3). Limitations: no low-rank and no full maps.
"""

from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Facts, Samples
from dsas.transforms.affine import AffineTransform, sorted_line


@final
class Lineas(AffineTransform):
    """A straight line for every neuron: slope (dim,) without unit, offset (dim,) in units of the activation."""

    name: ClassVar[str] = "lineas"
    facts: ClassVar[Facts] = Facts(
        formula="w t + b per neuron, learned end to end by `dsas.train` (`fit` gives Linear-AcT without a support)",
        paper="LinEAS, arXiv 2503.10679",
        left_out="no covariances between neurons",
        flops="3 d",
    )
    slope: Tensor
    offset: Tensor

    def __init__(self, slope: Float[Tensor, " dim"], offset: Float[Tensor, " dim"]) -> None:
        """Keep the lines; slope 1 and offset 0 change nothing."""
        super().__init__()
        self.keep(slope=slope, offset=offset)

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, seed: int = 0) -> "Lineas":
        """Return the closed-form lines through the sorted samples; only `dsas.train` learns them end to end.

        seed: seed of the draw from the larger set.
        """
        return cls(*sorted_line(source, target, seed=seed))

    def coefficients(self) -> AffineEdit:
        """Return the edit's vectors: slope - 1 and offset."""
        return AffineEdit(self.offset, self.slope - 1)
