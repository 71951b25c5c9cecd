"""Picture change: how far steering moves pictures drawn from the same noise: overall, inside a region, outside it.

    change = mean over pixels and channels of | x - x0 |,   x steered, x0 unsteered, both 0 to 255
    inside = sum over pixels of m |x - x0| / sum over pixels of m,   outside the same with 1 - m

m in [0, 1] is the share of each pixel that the region covers. Pictures that do not start from the same noise differ by
tens without any steering, so the number means nothing for them; 0 means that no pixel changed.

Limitations: it does not say what a change looks like to a person (as LPIPS does); a shift of the whole picture by one
pixel counts as a change.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from dsas.errors import OptionError

Before = UInt8[np.ndarray, "picture height width channel"] | Float[np.ndarray, "picture height width channel"]
After = UInt8[np.ndarray, "picture2 height2 width2 channel2"] | Float[np.ndarray, "picture2 height2 width2 channel2"]
Region = Float[np.ndarray, "picture3 height3 width3"] | Bool[np.ndarray, "picture3 height3 width3"]


class PictureChange(NamedTuple):
    """Mean absolute differences, one per picture, on the scale of 0 to 255.

    inside, outside: NaN for a picture whose region is empty, or leaves nothing outside.
    """

    everywhere: Float[np.ndarray, " picture"]
    inside: Float[np.ndarray, " picture"]
    outside: Float[np.ndarray, " picture"]


def picture_change(before: Before, after: After, *, region: Region | None = None) -> PictureChange:
    """Return how far each picture of `after` is from that of `before`, both uint8 or both floats of 0 to 1.

    region: a part of each picture, such as where a concept is; the whole picture when not given.
    Raises OptionError for no pictures, pictures that do not form pairs, and masks of another size or outside [0, 1].
    """
    if before.shape != after.shape or before.dtype != after.dtype or before.size == 0:
        raise OptionError(
            f"expected pairs of pictures, got {before.dtype} of {before.shape} and {after.dtype} of {after.shape}"
        )
    scale = 1.0 if before.dtype == np.uint8 else 255.0
    moved = scale * np.abs(after.astype(np.float64) - before.astype(np.float64)).mean(-1)
    weight = np.ones(moved.shape) if region is None else region.astype(np.float64)
    if weight.shape != moved.shape or not (weight.min() >= 0 and weight.max() <= 1):
        raise OptionError(f"expected a region of shape {moved.shape} with values in [0, 1], got {weight.shape}")
    return PictureChange(moved.mean((1, 2)), _over(moved, weight), _over(moved, 1 - weight))


def _over(
    moved: Float[np.ndarray, "picture height width"], weight: Float[np.ndarray, "picture height width"]
) -> Float[np.ndarray, " picture"]:
    total = weight.sum((1, 2))
    return np.divide((weight * moved).sum((1, 2)), total, out=np.full(len(total), np.nan), where=total > 0)
