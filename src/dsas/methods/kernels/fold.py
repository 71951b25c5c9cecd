"""Fold: the numbers of a fused step, with all folded in that does not depend on the token.

    gain  =  row * sigmoid(theta . t + bias)          row 1 where rows are None, sigmoid 1 where theta is None
    t'    =  t + gain * (slope * t + offset)          slope 0 where it is None

A Fold is a table with a line a Steering, of which every row of a batch takes one: line 0 where no `slots` are given.
`unsteered` puts a line of zeros before it, for rows that are not steered.

Left out: supports (a neuron's edit that ends where its value leaves a range), regulators with a value a neuron.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Fold(NamedTuple):
    """All of one floating dtype, float32 or better; theta and bias come together.

    offset: in units of the activation. slope: without unit. theta: in one over that unit. bias: a logit.
    """

    offset: Float[Tensor, "slot dim"]
    slope: Float[Tensor, "slot dim"] | None = None
    theta: Float[Tensor, "slot dim"] | None = None
    bias: Float[Tensor, " slot"] | None = None

    def to(self, device: torch.device, dtype: torch.dtype) -> "Fold":
        """Return the same numbers elsewhere; what is there already is not copied."""
        return Fold(self.offset.to(device, dtype), *(None if x is None else x.to(device, dtype) for x in self[1:]))

    def of(self, slots: Int[Tensor, " batch"]) -> "Fold":
        """Return the lines that the rows of a batch take, (batch, 1, dim), and the bias as (batch, 1, 1)."""
        slope, theta, bias = (None if value is None else value[slots].unsqueeze(1) for value in self[1:])
        return Fold(self.offset[slots].unsqueeze(1), slope, theta, None if bias is None else bias.unsqueeze(1))


def table(folds: list[Fold]) -> Fold:
    """Return one table of lines, the first of which is unsteered: line i + 1 is that of `folds[i]`, of one line.

    What one lacks and another has is filled with what has no effect: a slope of 0, a sigmoid of 1.
    """
    none = torch.zeros_like(folds[0].offset)
    every = [Fold(none), *folds]
    slopes = [none if fold.slope is None else fold.slope for fold in every]
    thetas = [none if fold.theta is None else fold.theta for fold in every]
    open_ = none.new_full((1,), torch.inf)  # sigmoid(inf) is 1, to the bit
    biases = [open_ if fold.bias is None else fold.bias for fold in every]
    return Fold(torch.cat([fold.offset for fold in every]), *map(torch.cat, (slopes, thetas, biases)))
