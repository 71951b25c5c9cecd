"""Logistic: h(t) = sigmoid(theta . t + b), the regulator of DSAS.

It is learned on pooled activations of source (label 1) against control (label 0), or on the tokens themselves if the
source has spans that mark the behaviour (`dsas.Example(text, spans)`), and applied to single tokens.
`dsas.methods.linear_boundary` fits the boundary.

Source: DSAS (arXiv 2512.03661, section 3.2; r = 5). The held-out accuracy decides whether a site is steered at all:
without cross-validation it is always 1 when there are far fewer texts than dimensions. Limitations: the
probabilities are not calibrated.
"""

from functools import partial
from typing import ClassVar, final

from jaxtyping import Int
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.affine_edit import Form
from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate
from dsas.regulators.base import FittedRegulator
from dsas.regulators.linear import LinearRegulator


@final
class Logistic(LinearRegulator):
    """A sigmoid of one projection: theta (dim,) in units of one over the activation, bias a scalar."""

    name: ClassVar[str] = "logistic"
    facts: ClassVar[Facts] = Facts(
        formula="sigmoid(theta . t + b)", paper="DSAS, arXiv 2512.03661", left_out="no calibration", flops="2 d"
    )
    form: ClassVar[Form] = "sigmoid"

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        components: int = 5,
        inverse_penalty: float = 1.0,
        folds: int = 5,
        seed: int = 0,
        groups: Int[Tensor, " all_samples"] | None = None,
    ) -> FittedRegulator:
        """Return the regulator and its balanced accuracy over stratified folds; target is not looked at.

        components: principal components kept, 1 to min(samples, dim). inverse_penalty: sklearn's C, > 0.
        folds: 2 or more, lowered to the size of the smaller set. seed: seed of the folds and of the randomised PCA.
        groups: the text of each sample, source then control, where samples are tokens: no text is in two folds.
        Raises OptionError outside these ranges.
        """
        data = Labelled.of(source, control)
        if not 1 <= components <= min(data.x.shape):
            raise OptionError(f"components must be from 1 to {min(data.x.shape)} (texts, dim), got {components}")
        if inverse_penalty <= 0 or folds < 2:
            raise OptionError(f"inverse_penalty must be > 0 and folds >= 2, got {inverse_penalty} and {folds}")
        draw = partial(separate, components=components, inverse_penalty=inverse_penalty, seed=seed)
        of_text = None if groups is None else groups.numpy()
        accuracy = held_out_accuracy(data, draw, folds=folds, seed=seed, groups=of_text)
        return FittedRegulator(cls.beyond(draw(data)), accuracy)
