"""Picture quality: how far a set of pictures, as a whole, is from another, in the space of some features.

    distance = || m1 - m2 ||^2 + trace(C1 + C2 - 2 (C1^(1/2) C2 C1^(1/2))^(1/2))

with means m and covariances C of the features of the two sets: the squared Frechet distance of two Gaussians, in the
unit of the features squared. All of it is float64. The pictures need not be pairs, but a distance is comparable only to
one with the same features and the same n: with few pictures it is biased upwards, most of all with many features. So n
> d is required, and the distance between two halves of the unsteered pictures shows the bias.

Features may be anything that gives each picture a vector: those of an Inception network give the FID. `RandomFeatures`
needs no weights: three layers of fixed random convolutions, whose mean and spread over the picture are kept. They are
not those of the model that is steered. They see colour best, then texture. In drawn scenes, a blur of one pixel is no
further away than two halves of 400 pictures are from each other, and they do not recognise objects.

Limitations: no Inception weights, no unbiased variant (KID). Source: Heusel et al. 2017 (1706.08500); Dowson and Landau
1982; for random features, Naeem et al. 2020 (2002.09797).
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import nn

from dsas.errors import ActivationError, OptionError

Pictures = UInt8[np.ndarray, "picture height width 3"] | Float[np.ndarray, "picture height width 3"]
Features = Callable[[np.ndarray], np.ndarray]
_BATCH = 64


class FrechetDistance(NamedTuple):
    """The squared distance, >= 0, with the features' name and number and the size of each set."""

    distance: float
    features: str
    dim: int
    n: tuple[int, int]


@final
class RandomFeatures:
    """Mean and standard deviation over the picture of each channel of three random convolutions: (picture, 2 channels).

    channels: how many each layer has, >= 1. seed: draws the weights. Pictures may have any size from 8 pixels on.
    """

    def __init__(self, *, channels: int = 16, seed: int = 0) -> None:
        if channels < 1:
            raise OptionError(f"expected channels >= 1, got {channels}")
        self.name = f"random convolutions, {2 * channels}, seed {seed}"
        draw = torch.Generator().manual_seed(seed)
        widths = (3, channels, channels, channels)
        self._weights = [
            torch.randn(after, before, 3, 3, generator=draw) * (2 / (9 * before)) ** 0.5
            for before, after in pairwise(widths)
        ]

    @torch.no_grad()
    def __call__(self, pictures: Pictures) -> Float[np.ndarray, "picture dim"]:
        """Return the features of pictures, uint8 or floats of 0 to 1."""
        found = [self._of(pictures[start : start + _BATCH]) for start in range(0, len(pictures), _BATCH)]
        return np.concatenate(found)

    def _of(self, pictures: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(np.ascontiguousarray(pictures)).float().permute(0, 3, 1, 2)
        x = x / 127.5 - 1 if pictures.dtype == np.uint8 else 2 * x - 1
        for number, weight in enumerate(self._weights):
            x = nn.functional.conv2d(x, weight, stride=1 if number == 0 else 2)
            x = x if number == len(self._weights) - 1 else x.relu()
        return torch.cat([x.mean((2, 3)), x.std((2, 3), correction=0)], dim=1).double().numpy()


def frechet_distance(first: Pictures, second: np.ndarray, *, features: Features) -> FrechetDistance:
    """Return how far two sets of pictures are from each other.

    features: takes pictures and gives (picture, dim); its `name`, or that of the function, is kept in the result.
    Raises OptionError for fewer pictures in a set than features + 1, ActivationError for features that are not finite
    or not one vector per picture.
    """
    name = str(getattr(features, "name", getattr(features, "__name__", type(features).__name__)))
    vectors = [np.asarray(features(pictures), np.float64) for pictures in (first, second)]
    for pictures, x in zip((first, second), vectors, strict=True):
        if x.ndim != 2 or len(x) != len(pictures) or not np.isfinite(x).all():
            raise ActivationError(f"expected finite features ({len(pictures)}, dim) of {name}, got shape {x.shape}")
        if len(x) <= x.shape[1]:
            raise OptionError(
                f"the distance over {x.shape[1]} features needs at least {x.shape[1] + 1} pictures each, got {len(x)}"
            )
    return FrechetDistance(gaussian_distance(*vectors), name, vectors[0].shape[1], (len(first), len(second)))


def gaussian_distance(first: Float[np.ndarray, "sample dim"], second: Float[np.ndarray, "sample2 dim"]) -> float:
    """Return the squared Frechet distance of the Gaussians with the means and (unbiased) covariances of two samples."""
    means = first.mean(0), second.mean(0)
    one, other = (np.atleast_2d(np.cov(x, rowvar=False)) for x in (first, second))
    values, axes = np.linalg.eigh(one)
    root = (axes * np.sqrt(values.clip(0))) @ axes.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0)).sum()
    distance = np.square(means[0] - means[1]).sum() + np.trace(one) + np.trace(other) - 2 * cross
    return max(0.0, float(distance))
