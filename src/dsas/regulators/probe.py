"""Probe: h(t) = sigmoid(theta . t + bias), a linear probe of one token, with a cut that control seldom exceeds.

It differs from `logistic` in how it is fitted: in the whole space, on standardised neurons, with a strong penalty; and
its slope and offset are set so that its mean over held-out control tokens is a stated small number
(`dsas.methods.tuned_boundary`, with a memory of one token). `evidence` accumulates the same score over the row.

Source: this project (docs/lab/findings.md). Limitations: one token says less than the text around it.
"""

from typing import ClassVar, final

from jaxtyping import Int
from torch import Tensor

from dsas.methods.affine_edit import Form
from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Boundary
from dsas.methods.tuned_boundary import TokenScores, TunedBoundary, Tuning, tuned_boundary
from dsas.regulators.base import TunableRegulator, Tuned, Untuned
from dsas.regulators.linear import LinearRegulator


@final
class Probe(LinearRegulator):
    """A sigmoid of one projection: theta (dim,) in units of one over the activation, bias a scalar."""

    name: ClassVar[str] = "probe"
    facts: ClassVar[Facts] = Facts(
        formula="sigmoid(theta . t + bias), with a set mean over held-out control", paper="-", left_out="-", flops="2 d"
    )
    form: ClassVar[Form] = "sigmoid"

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        false_positives: float = 0.02,
        sharpness: float = 2.0,
        inverse_penalty: float = 0.01,
        folds: int = 5,
        seed: int = 0,
        groups: Int[Tensor, " all_samples"] | None = None,
    ) -> TunableRegulator:
        """Return the regulator and its balanced accuracy over stratified folds; target is not looked at.

        false_positives: mean value on held-out control, in (0, 1). sharpness: sharpness of the sigmoid, in standard
        deviations of held-out control, > 0. inverse_penalty: sklearn's C, > 0. folds: 2 or more, lowered to the size of
        the smaller set. seed: seed of the folds. groups: the text of each sample, source then control, where samples
        are tokens.
        Raises OptionError outside these ranges.
        """
        tuning = Tuning(false_positives, sharpness, prior=0.0, memory=0.0)
        found = tuned_boundary(
            source, control, tuning, inverse_penalty=inverse_penalty, folds=folds, seed=seed, groups=groups
        )

        def tune(scores: TokenScores) -> Tuned:
            boundary = found.tune(scores)
            return Tuned(_of(boundary), boundary.values)

        return TunableRegulator(_of(found.boundary), found.held_out.accuracy, Untuned(found.held_out, tune))


def _of(found: TunedBoundary) -> LinearRegulator:
    return Probe.beyond(Boundary(found.boundary.theta, found.boundary.bias - found.cut))
