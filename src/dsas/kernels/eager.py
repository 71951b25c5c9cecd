"""The fused step in PyTorch: a projection, a sigmoid in place, and one multiply-add (two with a slope).

The activation is read in float32 or better and rounded once, at the end; nothing that was given is written into.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import linear

from dsas.kernels.fold import Fold


class Stepped(NamedTuple):
    """The steered activation, and what its edit was multiplied by; None is 1 everywhere."""

    t: Float[Tensor, "batch token dim"]
    gain: Float[Tensor, "batch _ 1"] | None


def stepped(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Stepped:
    """Return t + gain * (slope * t + offset) in the dtype of `t`, and the gain in that of the fold."""
    offset, slope, theta, bias = fold if slots is None else fold.of(slots)
    wide = t if t.dtype == offset.dtype else t.to(offset.dtype)
    gain = None
    if theta is not None and bias is not None:
        score = linear(wide, theta, bias) if slots is None else (wide * theta).sum(-1, keepdim=True) + bias
        gain = score.sigmoid_()
    if rows is not None:
        each = rows.view(-1, 1, 1)
        gain = each if gain is None else gain * each
    edit = offset if slope is None else torch.addcmul(offset, wide, slope)
    steered = wide + edit if gain is None else torch.addcmul(wide, gain, edit)
    return Stepped(steered if t.dtype == offset.dtype else steered.to(t.dtype), gain)


def step(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch token dim"]:
    """Return t + gain * (slope * t + offset) in the dtype of `t`."""
    return stepped(t, fold, rows, slots).t
