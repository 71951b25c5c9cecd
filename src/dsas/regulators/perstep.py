"""PerStep: h(t) = h_k(t) in the k-th of n equal parts of the denoising schedule: one regulator per step.

    dsas.fit(pipeline, ..., reading=dsas.Drawing(steps=4, per_step=True))     one per step, each fitted on that step
    dsas.PerStep([early, late])                                             from existing regulators

With as many regulators as the schedule has steps, each serves one step; a schedule of another length is divided as
evenly: step i of m takes regulator floor(i n / m).

Source: per-step regulators of DSAS for images (arXiv 2512.03661). Limitations: no blending between steps.
"""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor, nn

from dsas.errors import OptionError, StateError
from dsas.methods.base import Facts, Samples
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator, Regulator


@final
class PerStep(Regulator):
    """Calls one of several regulators, chosen by the denoising step."""

    name: ClassVar[str] = "per-step"
    facts: ClassVar[Facts] = Facts(
        formula="hk(t) in part k of n of the denoising schedule",
        paper="DSAS, arXiv 2512.03661",
        left_out="no blending of steps",
        flops="those of one regulator",
    )
    not_served: ClassVar[str] = "it steers denoisers only"
    reads_forward_pass = True
    regulators: nn.ModuleList

    def __init__(self, regulators: Sequence[Regulator]) -> None:
        """Keep the regulators, that of the first step first. Raises OptionError for an empty list."""
        super().__init__()
        if not regulators:
            raise OptionError("expected one regulator per denoising step, got none")
        self.keep(regulators=list(regulators))

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        of: Sequence[Callable[[Tensor, Tensor, Tensor], FittedRegulator]] = (),
    ) -> FittedRegulator:
        """Fit a regulator per step, with the functions `of`; samples of the first step come first, equally many each.

        The accuracy is the mean over steps. Raises OptionError when there are no functions or samples do not divide.
        """
        if not of or any(len(samples) % len(of) for samples in (source, control, target)):
            raise OptionError(f"expected equally many samples for each of {len(of)} denoising steps (1 or more)")
        parts = zip(*(samples.chunk(len(of)) for samples in (source, control, target)), strict=True)
        return cls.joined([fit(*part) for fit, part in zip(of, parts, strict=True)])

    @classmethod
    def joined(cls, fitted: Sequence[FittedRegulator]) -> FittedRegulator:
        """Return the fits of all steps as one; its accuracy is the mean of those that are known."""
        known = [one.accuracy for one in fitted if one.accuracy is not None]
        return FittedRegulator(cls([one.regulator for one in fitted]), fmean(known) if known else None)

    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return the values of the step's regulator. Raises StateError outside a denoising pass."""
        if forward_pass.denoising is None:
            raise StateError("a per-step regulator was called outside a denoising pass: it steers denoisers only")
        number, total, _ = forward_pass.denoising
        return self.regulators[number * len(self.regulators) // total](t, forward_pass)
