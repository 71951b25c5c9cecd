"""Moments: all that a transform learns from which needs no single samples, for sets of any size.

Moments of two parts of a set give those of the whole, so a set is read part by part and never held. With numbers of
samples n and m, means a and b, and sums of squared deviations A and B, the parts together have

    mean  a + (b - a) m / (n + m)          sum of squared deviations  A + B + (b - a)^2 n m / (n + m)

Everything is computed in float64. Source: Chan, Golub and LeVeque, updating formulae for sample variances (1979).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Samples


class Moments(NamedTuple):
    """The number of samples, and of every neuron the mean, the sample variance (0 of one sample) and both extremes.

    All are float64 and (dim,), in units of the activation or its square.
    """

    size: int
    mean: Float[Tensor, " dim"]
    variance: Float[Tensor, " dim"]
    low: Float[Tensor, " dim"]
    high: Float[Tensor, " dim"]

    @classmethod
    def of(cls, samples: Samples) -> "Moments":
        """Return the moments of one sample or more."""
        x = samples.double()
        variance = x.var(0) if len(x) > 1 else torch.zeros_like(x[0])
        return cls(len(x), x.mean(0), variance, x.amin(0), x.amax(0))

    @property
    def sd(self) -> Float[Tensor, " dim"]:
        """The sample standard deviation of every neuron."""
        return self.variance.sqrt()

    def joined(self, other: "Moments") -> "Moments":
        """Return the moments of both parts together."""
        size = self.size + other.size
        apart, share = other.mean - self.mean, other.size / size
        squares = self.variance * (self.size - 1) + other.variance * (other.size - 1)
        squares = squares + apart.square() * (self.size * share)
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Moments(size, self.mean + apart * share, squares / (size - 1), low, high)
