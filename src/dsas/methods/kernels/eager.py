"""The fused step in PyTorch: a projection, a sigmoid in place, and one multiply-add (two with a slope).

The activation is read in float32 or better and rounded once, at the end; nothing that was given is written into.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, addcmul
from torch.nn.functional import linear

from dsas.methods.kernels.fold import Fold

CASTS: dict[torch.dtype, Callable[[Tensor], Tensor]] = {  # half as long as `Tensor.to`
    torch.bfloat16: Tensor.bfloat16,
    torch.float16: Tensor.half,
    torch.float32: Tensor.float,
    torch.float64: Tensor.double,
}


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
    edit = offset if slope is None else addcmul(offset, wide, slope)
    steered = wide + edit if gain is None else addcmul(wide, gain, edit)
    return Stepped(steered if t.dtype == offset.dtype else steered.to(t.dtype), gain)


def step(
    t: Float[Tensor, "batch token dim"],
    fold: Fold,
    rows: Float[Tensor, " batch"] | None = None,
    slots: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, "batch token dim"]:
    """Return t + gain * (slope * t + offset) in the dtype of `t`."""
    return stepped(t, fold, rows, slots).t


def prepared(fold: Fold, dtype: torch.dtype) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return `stepped` for one fold of one line and activations of one dtype, with nothing left to decide.

    Between the layers of a model, which push all else out of the caches, each line of Python costs as much as a launch.
    """
    offset, slope, bias = fold.offset, fold.slope, fold.bias
    theta: Any = fold.theta  # without it there is no `gated`
    if dtype not in CASTS:
        return lambda t: stepped(t, fold)
    narrow, widen, round_ = dtype != offset.dtype, CASTS[offset.dtype], CASTS[dtype]

    def moved(t: Tensor) -> tuple[Tensor, None]:
        return t + (offset if slope is None else addcmul(offset, t, slope)), None

    def gated(t: Tensor) -> tuple[Tensor, Tensor]:
        gain = linear(t, theta, bias).sigmoid_()
        return addcmul(t, gain, offset if slope is None else addcmul(offset, t, slope)), gain

    step: Callable[[Tensor], tuple[Tensor, Tensor | None]] = moved if theta is None else gated

    def rounded(t: Tensor) -> tuple[Tensor, Tensor | None]:
        steered, gain = step(widen(t))
        return round_(steered), gain

    return rounded if narrow else step
