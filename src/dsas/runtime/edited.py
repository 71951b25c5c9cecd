"""Edited: the result of an edit."""

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Edited(NamedTuple):
    """The steered activation, and the factor on its edit; None is 1 everywhere.

    regulated: the regulator alone, which only the general way computes.
    """

    t: Float[Tensor, "batch token dim"]
    gain: Float[Tensor, "batch _ gain"] | None
    regulated: Float[Tensor, "batch token gain"] | None = None
