"""Rectified: h(t) = max(0, theta . t + b), exactly 0 off the concept and growing on it; the ReLU form of E2E-DSAS.

    fit:  theta, b = (theta', b') / scale,    scale = mean over source of max(0, theta' . t + b')

theta' and b' are the logistic boundary between source and control (`dsas.methods.linear_boundary`); dividing by the
scale makes the mean value on the pooled source 1. So this closed form has a gradient on the source: a rectifier with
theta = 0 and b <= 0 is 0 on every token, and so is its gradient, so it could never learn.
`dsas.E2E(regulator_form="relu")` starts from it.

Source: E2E-DSAS (arXiv 2512.03661, section on end-to-end training). Limitations: no leaky rectifiers.
"""

from functools import partial
from typing import ClassVar, final

import torch

from dsas.errors import OptionError
from dsas.methods.affine_edit import Form
from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import Labelled, held_out_accuracy, separate
from dsas.regulators.base import FittedRegulator
from dsas.regulators.linear import LinearRegulator


@final
class Rectified(LinearRegulator):
    """The distance of a token beyond a plane, 0 before it: theta (dim,) in one over the activation, bias a scalar."""

    name: ClassVar[str] = "rectified"
    facts: ClassVar[Facts] = Facts(
        formula="max(0, theta . t + b), mean 1 on the source", paper="E2E-DSAS, arXiv 2512.03661",
        left_out="no leaky rectifiers", flops="2 d",
    )  # fmt: skip
    form: ClassVar[Form] = "relu"

    @classmethod
    def fit(
        cls, source: Samples, control: Samples, target: Samples, *, components: int = 5, seed: int = 0
    ) -> FittedRegulator:
        """Return the regulator and the boundary's balanced accuracy over stratified folds; target is not looked at.

        components: as in `Logistic`, >= 1. If no source text is beyond the boundary, the value is 1/2 everywhere, so
        that it can still learn. Raises OptionError for fewer components.
        """
        if components < 1:
            raise OptionError(f"components must be >= 1, got {components}")
        data, draw = Labelled.of(source, control), partial(separate, components=components, seed=seed)
        boundary = draw(data)
        scale = float((data.x[data.y == 1] @ boundary.theta + boundary.bias).clip(min=0).mean())
        accuracy = held_out_accuracy(data, draw, seed=seed)
        if scale <= 0:
            return FittedRegulator(cls(torch.zeros(data.x.shape[1]), torch.tensor(0.5)), accuracy)
        return FittedRegulator(cls.beyond(boundary, scale), accuracy)
