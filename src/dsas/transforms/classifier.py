"""Classifier direction: T(t) = t + sigma u, u the unit normal of a logistic regression that points to the target.

sigma is the standard deviation of all pooled samples along u. At the sites "heads" this is the method of the original,
one direction per head at the input of the output projection; `dsas.fit(selection=dsas.Top(K))` then keeps the K heads
that separate the sets best.

Source: ITI, inference-time intervention (arXiv 2306.03341, section 3); "ITI-c" in DSAS (arXiv 2512.03661), where the
scale is not stated. Limitations: it does not use the mass-mean direction of the original (at "heads" that is `caa`).
"""

from typing import ClassVar, final

import numpy as np
import torch

from dsas.methods.base import Facts, Samples
from dsas.methods.linear_boundary import ALL_COMPONENTS, Labelled, separate
from dsas.transforms.affine import Translation


@final
class ClassifierAddition(Translation):
    """Adds a classifier's normal, scaled to the samples' standard deviation along it, to every token."""

    name: ClassVar[str] = "iti"
    facts: ClassVar[Facts] = Facts(
        formula="t + sigma u, u = unit normal of an S-vs-T logistic regression, sigma = sd along u",
        paper="ITI, arXiv 2306.03341",
        left_out="no mass-mean direction",
        flops="d",
    )

    @classmethod
    def fit(cls, source: Samples, target: Samples, *, inverse_penalty: float = 1.0) -> "ClassifierAddition":
        """Return the addition; inverse_penalty is sklearn's C, > 0. When the sets are the same it adds nothing."""
        data = Labelled.of(target, source)
        normal = separate(data, components=ALL_COMPONENTS, inverse_penalty=inverse_penalty).theta
        length = float(np.linalg.norm(normal))
        direction = normal / length if length > 0 else normal
        return cls(torch.from_numpy(direction * np.std(data.x @ direction)).float())
