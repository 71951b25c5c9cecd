"""Product: h(t) = h_1(t) h_2(t) ...: steer only where every factor does.

    regulator="logistic*posterior"                   by name, each factor fitted on its own
    dsas.Product([logistic, dsas.Schedule("generated")])   from existing regulators

Source: GAPS (arXiv 2609.01878) multiplies a regulator per neuron by that of DSAS. Limitations: no sums or other
combinations.
"""

from collections.abc import Sequence
from functools import reduce
from operator import mul
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedGain, ServedRegulator
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator


@final
class Product(Regulator):
    """The product of two or more regulators, with one value per neuron if a factor has one per neuron."""

    name: ClassVar[str] = "product"
    facts: ClassVar[Facts] = Facts(
        formula="h1(t) h2(t) ...", paper="GAPS, arXiv 2609.01878", left_out="no sums", flops="those of the factors"
    )
    factors: nn.ModuleList

    def __init__(self, factors: Sequence[Regulator]) -> None:
        """Keep the factors. Raises OptionError for fewer than two."""
        super().__init__()
        if len(factors) < 2:
            raise OptionError(f"a product needs at least two regulators, got {len(factors)}")
        self.keep(factors=list(factors))
        self.reads_forward_pass = any(factor.reads_forward_pass for factor in factors)
        self.reads_additions = any(factor.reads_additions for factor in factors)

    @classmethod
    def fit(
        cls, source: Samples, control: Samples, target: Samples, *, of: Sequence[type[Regulator]] = ()
    ) -> FittedRegulator:
        """Fit each class in `of`, two or more; the accuracy is the lowest among the factors."""
        fitted = [kind.fit(source, control, target) for kind in of]
        known = [one.accuracy for one in fitted if one.accuracy is not None]
        return FittedRegulator(cls([one.regulator for one in fitted]), min(known) if known else None)

    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return the product of the factors' values."""
        return reduce(mul, (factor(t, forward_pass.part(number)) for number, factor in enumerate(self.factors)))

    def served_form(self) -> ServedGain:
        """Return the product of the factors' forms. Raises OptionError, naming the factor that has none."""
        form = ServedGain()
        for factor in self.factors:
            assert isinstance(factor, Regulator)
            if not isinstance(factor, ServedRegulator):
                raise OptionError(f"its factor {factor.name!r} cannot be: {factor.not_served}")
            form = form.times(factor.served_form())
        return form


def times(first: Regulator, second: Regulator) -> Product:
    """Return the product of two regulators; products among them are flattened into one."""
    factors = [list(one.factors) if isinstance(one, Product) else [one] for one in (first, second)]
    return Product([factor for some in factors for factor in some if isinstance(factor, Regulator)])
