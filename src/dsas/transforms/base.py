"""The contract of a transform: HOW an activation changes, T(t), at strength 1 and regulator 1."""

from abc import ABC, abstractmethod
from typing import ClassVar, final

from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Fitted, Samples
from dsas.methods.moments import Moments


class Transform(Fitted, ABC):
    """A map T: R^dim -> R^dim, the same for every token.

    Contract, checked by `dsas.testing.check_transform`: `fit` is a classmethod that returns a fitted object from
    pooled source and target activations (sample, dim), float32, and may take options by keyword; `edit` is a pure
    function of its input, acts on each token alone, keeps the shape, computes in float32 or better, never writes into
    its input and lets gradients through. `has_opposite`: whether t - (T(t) - t) is the opposite step, as for a T that
    adds or scales, so that a strength may be negative. `pairs`: whether `fit` reads source[i] and target[i] as one
    example with and without the behaviour, so that `dsas.fit` needs one target example per source example.
    `fit_moments` makes the same of moments, for sets that are too large to hold, where nothing else is needed.
    """

    has_opposite: ClassVar[bool] = False
    pairs: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def fit(cls, source: Samples, target: Samples) -> "Transform":
        """Return the transform that moves source activations towards target activations."""

    @classmethod
    def fit_moments(cls, source: Moments, target: Moments) -> "Transform | None":
        """Return what `fit` returns for samples of these moments, with its options; None where it needs the samples."""
        return None

    @abstractmethod
    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return T(t) - t, in float32 or better."""

    @final
    def forward(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return T(t) in the dtype of `t`."""
        return (t + self.edit(t)).to(t.dtype)
