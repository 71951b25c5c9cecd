"""MERA: where a probe gives the behaviour a probability above alpha, the closed-form step back to that probability.

    h(t) = max(0, w . t + b - logit(alpha)) / reach,     reach = w . (mean_S - mean_T)

w and b are a logistic regression of source against control (`dsas.methods.linear_boundary`). A transform that moves the
log-odds by -reach, as the difference of the means does, lands at strength 1 exactly on the boundary p = alpha, and a
token below it is not changed. Along w itself, T(t) = t - reach w / |w|^2, this is the shortest step to the boundary, as
in the paper; here any transform can be used.

Source: MERA (arXiv 2510.13290, section 3). Limitations: alpha is not calibrated (its default is 0.5); there is no
linear probe for the error's size instead of its probability.
"""

import math
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
class Mera(LinearRegulator):
    """The distance of a token beyond a plane, 0 before it: theta (dim,) in one over the activation, bias a scalar."""

    name: ClassVar[str] = "mera"
    facts: ClassVar[Facts] = Facts(
        formula="max(0, w . t + b - logit(alpha)) / (w . (mean_S - mean_T))",
        paper="MERA, arXiv 2510.13290",
        left_out="alpha is not calibrated",
        flops="2 d",
    )
    form: ClassVar[Form] = "relu"

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        alpha: float = 0.5,
        components: int = 5,
        seed: int = 0,
    ) -> FittedRegulator:
        """Return the regulator and the probe's balanced accuracy over stratified folds.

        alpha: probability in (0, 1) above which to steer. components: as in `Logistic`. If the target is not on the
        control side of the source, no step leads back: the regulator is 0 and its accuracy 0.
        Raises OptionError outside these ranges.
        """
        if not 0 < alpha < 1 or components < 1:
            raise OptionError(f"alpha must lie between 0 and 1 and components be >= 1, got {alpha} and {components}")
        data, draw = Labelled.of(source, control), partial(separate, components=components, seed=seed)
        probe = draw(data)
        reach = float(probe.theta @ (source.double().mean(0) - target.double().mean(0)).numpy())
        if reach <= 0:
            return FittedRegulator(cls(torch.zeros(data.x.shape[1]), torch.tensor(0.0)), accuracy=0.0)
        sure = probe._replace(bias=probe.bias - math.log(alpha / (1 - alpha)))
        return FittedRegulator(cls.beyond(sure, reach), held_out_accuracy(data, draw, seed=seed))
