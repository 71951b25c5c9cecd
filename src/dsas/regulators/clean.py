"""Clean: h(t) = h0(t - a), another regulator that reads tokens without what earlier sites have added to them.

    a = sum over the earlier sites k of  strength x h_k x (T_k(t_k) - t_k),     of the same token in the same pass

On the residual stream, what is added after one layer is still there after the next one. A regulator there sees tokens
that earlier sites have moved, and separates them less well the more they are steered. Reading clean subtracts the
direct part of these edits; what the layers in between made of them stays. No state is carried from pass to pass, so
caches, chunks, padding and packed rows change nothing.

    dsas.fit(..., regulator=functools.partial(dsas.Clean.fit, of=dsas.Evidence.fit))

Source: after YOPO (arXiv 2608.14465); measured in docs/lab/findings.md. Limitations: only for sites on the residual
stream (`fit` refuses others); additions by other Steerings, or at sites whose regulator does not read clean, are not
subtracted. Without reading clean, a regulator damps itself as the strength grows; this one does not, so it needs less
strength.
"""

from collections.abc import Callable
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Facts, Samples
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator, wrapped


@final
class Clean(Regulator):
    """Applies a regulator to tokens from which the additions of earlier sites are subtracted."""

    name: ClassVar[str] = "clean"
    facts: ClassVar[Facts] = Facts(
        formula="h(t - what earlier sites added to t)",
        paper="YOPO, arXiv 2608.14465",
        left_out="only at residual sites",
        flops="those of h + 3 d",
    )
    not_served: ClassVar[str] = "it reads tokens without what earlier sites added, which a server does not keep apart"
    reads_forward_pass = True
    reads_additions = True
    regulator: Regulator

    def __init__(self, regulator: Regulator) -> None:
        """Keep the regulator to call."""
        super().__init__()
        self.keep(regulator=regulator)

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        of: Callable[[Samples, Samples, Samples], FittedRegulator] | None = None,
    ) -> FittedRegulator:
        """Fit the regulator with its own `fit`, on activations that were never steered.

        Raises OptionError without `of`.
        """
        if of is None:
            raise OptionError("expected the fit of the regulator that reads clean, such as of=dsas.Evidence.fit")
        return wrapped(of(source, control, target), cls)

    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return the regulator's values for t minus what was added."""
        return self.regulator(forward_pass.without_additions(t), forward_pass)
