"""Served form: a method as numbers, for a server in which every token of a batch has its own row (`dsas.serving`).

    T(t) - t  =  slope * t + offset + sum_k (reads_k . t) writes_k           inside the support, 0 outside
    h(t)      =  factor  *  prod_i activation_i(theta_i . t + bias_i)
                 *  prod_j 1[curve_j t^2 + slope_j t + level_j > 0]  *  prod_p h_p(place)  *  1[condition of the prompt]

The third product is over regulators that look at the place of a token and never at the token itself: they run outside
the model's graph, before the step that reads the token. A transform or regulator says how it is served with a method
`served_form`, in its own file; one without it gives the reason in `not_served`, and is refused with it.

Limitations: no full matrices, and no projections of anything but the token itself.
"""

import math
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Fitted

GateActivation = Literal["sigmoid", "relu", "step"]

# Below this rate, scores do not fade over any sequence: the weight of n tokens is n.
UNFADING = 1e-9


class Adding(NamedTuple):
    """How scores add up to evidence: `prior` tokens of score 0 come first, and h is 1/2 at `cut`.

    memory: the share of a score that is left at the next token, 0 to 1. held: whether the prompt's tokens alone count,
    and their evidence holds after it.
    """

    prior: float
    cut: float
    memory: float
    held: bool = False

    @property
    def fade(self) -> float:
        """-ln(memory), from 0 to 90; for a memory of 1, the least rate that still adds up."""
        return max(-math.log(max(self.memory, 1e-38)), 1e-3 * UNFADING)


class Projection(NamedTuple):
    """One projection and its activation; "step" is 1 above 0. adding: how scores add up, None where they do not."""

    theta: Float[Tensor, " dim"]
    bias: Float[Tensor, ""]
    form: GateActivation = "sigmoid"
    adding: Adding | None = None


class Neurons(NamedTuple):
    """1 for the neurons of a token for which curve t^2 + slope t + level > 0, 0 for the others."""

    curve: Float[Tensor, " dim"]
    slope: Float[Tensor, " dim"]
    level: Float[Tensor, " dim"]


class PromptCondition(NamedTuple):
    """1 where cos(m, tanh(c (c . m) / (c . c))) > threshold, or not above it, as `above` says; c is `direction`.

    m: mean of the prompt's tokens so far without its first; 0 while there is none.
    """

    direction: Float[Tensor, " dim"]
    threshold: Float[Tensor, ""]
    above: bool


class ServedEdit(NamedTuple):
    """A transform: its affine part, and pairs of vectors (dim,): one to project on, one to write along."""

    affine: AffineEdit
    reads: tuple[Float[Tensor, " dim"], ...] = ()
    writes: tuple[Float[Tensor, " dim"], ...] = ()


class ServedGain(NamedTuple):
    """A regulator: a product of these. places: regulators that look only at places, such as `Schedule` and `Turns`."""

    factor: float = 1.0
    projections: tuple[Projection, ...] = ()
    neurons: tuple[Neurons, ...] = ()
    places: tuple[Fitted, ...] = ()
    prompts: tuple[PromptCondition, ...] = ()

    def times(self, other: "ServedGain") -> "ServedGain":
        """Return the product of two regulators."""
        return ServedGain(
            self.factor * other.factor,
            self.projections + other.projections,
            self.neurons + other.neurons,
            self.places + other.places,
            self.prompts + other.prompts,
        )


@runtime_checkable
class ServedTransform(Protocol):
    """A transform that says how it is served."""

    def served_form(self) -> ServedEdit:
        """Return its numbers, float32. Raises OptionError where its arguments forbid it, with the reason."""
        ...


@runtime_checkable
class ServedRegulator(Protocol):
    """A regulator that says how it is served."""

    def served_form(self) -> ServedGain:
        """Return its numbers, float32. Raises OptionError where its arguments forbid it, with the reason."""
        ...
