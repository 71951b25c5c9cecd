"""The affine edit: what a rule does when its transform is one multiply-add per neuron, its regulator one projection.

    edit(t)  =  slope * t + offset                    where low <= t <= high, 0 elsewhere
    h(t)     =  activation(theta . t + bias)          1 where there is no theta
    t'       =  t + strength * h(t) * edit(t)

`AffineEdit` is the one shape of these numbers: transforms and regulators produce them, `prepared` computes the equation
with them in PyTorch, and `dsas.serving.tables` holds one row of them per Steering, from which every token takes its
own.

Source: equation 1 of DSAS (arXiv 2512.03661). Limitations: no full matrices (a linear map per token costs dim times as
much), no regulators with one value per neuron.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, addcmul, baddbmm
from torch.nn.functional import linear

Form = Literal["sigmoid", "relu"]
Step = Callable[[Tensor], tuple[Tensor, Tensor | None]]

ACTIVATIONS: dict[Form, Callable[[Tensor], Tensor]] = {"sigmoid": Tensor.sigmoid_, "relu": Tensor.relu_}  # in place
CASTS: dict[torch.dtype, Callable[[Tensor], Tensor]] = {  # they take half the time of `Tensor.to`
    torch.bfloat16: Tensor.bfloat16,
    torch.float16: Tensor.half,
    torch.float32: Tensor.float,
    torch.float64: Tensor.double,
}


class AffineEdit(NamedTuple):
    """The numbers of one edit, all of one floating dtype, float32 or better.

    offset, low and high are in units of the activation, slope has no unit, theta is in one over that unit; each is None
    where the edit needs none. Low and high come together, and so do theta and bias, with the activation `form`. factor:
    what slope and offset have already been multiplied by, such as the strength and a constant regulator.
    """

    offset: Float[Tensor, " dim"]
    slope: Float[Tensor, " dim"] | None = None
    low: Float[Tensor, " dim"] | None = None
    high: Float[Tensor, " dim"] | None = None
    theta: Float[Tensor, "1 dim"] | None = None
    bias: Float[Tensor, " 1"] | None = None
    form: Form = "sigmoid"
    factor: float = 1.0

    @property
    def is_addition(self) -> bool:
        """Whether the edit is the same for every activation."""
        return self.slope is None and self.low is None

    def to(self, device: torch.device, dtype: torch.dtype) -> "AffineEdit":
        """Return the same numbers on another device; those that are there already are not copied."""
        moved: list[Any] = [value.to(device, dtype) if isinstance(value, Tensor) else value for value in self]
        return AffineEdit(*moved)

    def function(self) -> Callable[[Tensor], Tensor]:
        """Return t -> slope * t + offset inside the support, 0 outside; t in the dtype of the numbers."""
        offset, slope, low, high = self[:4]
        line = (lambda _t: offset) if slope is None else lambda t: addcmul(offset, t, slope)
        if low is None or high is None:
            return line
        return lambda t: line(t).masked_fill((t < low) | (t > high), 0.0)


def prepared(edit: AffineEdit, dtype: torch.dtype, rows: Float[Tensor, "batch 1 1"] | None) -> Step:
    """Return a function that steers activations (batch, token, dim) of `dtype`: it gives t' and the gain, None for 1.

    rows: what the gain of each row is multiplied by. The activation is read in the dtype of `edit`, rounded once at the
    end and never written into. As little as possible is left to decide: between the layers of a model, which push all
    else out of the caches, each line of Python costs as much as a launch.
    """
    offset, is_addition, at, activate = edit.offset, edit.is_addition, edit.function(), ACTIVATIONS[edit.form]
    theta: Any = edit.theta
    bias: Any = edit.bias
    column: Any = None if theta is None else theta.view(1, -1, 1)
    constant: Any = None if theta is None else bias.view(1, 1, 1)
    dim = offset.numel()

    def step(t: Tensor) -> tuple[Tensor, Tensor | None]:
        gain = rows
        if theta is not None:
            # The first takes half the time of the other for one token, and more time for several.
            gain = activate(baddbmm(constant, t, column) if t.numel() == dim else linear(t, theta, bias))
            if rows is not None:
                gain = gain * rows
        change = offset if is_addition else at(t)
        return t + change if gain is None else addcmul(t, gain, change), gain

    if dtype == offset.dtype:
        return step
    widen, round_ = cast(offset.dtype), cast(dtype)

    def rounded(t: Tensor) -> tuple[Tensor, Tensor | None]:
        steered, gain = step(widen(t))
        return round_(steered), gain

    return rounded


def cast(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Return a function that casts a tensor to `dtype`."""
    return CASTS.get(dtype, lambda t: t.to(dtype))
