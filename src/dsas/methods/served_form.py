"""Served form: what a method is where every token of a batch has its own row of numbers (`dsas.serving`).

    T(t) - t  =  slope * t + offset + sum_k (reads_k . t) writes_k           inside the support, 0 outside
    h(t)      =  factor  *  prod_i activation_i(theta_i . t + bias_i)
                 *  prod_j 1[curve_j t^2 + slope_j t + level_j > 0]  *  prod_p h_p(place)  *  1[condition of the prompt]

The third product is of regulators that look at where a token stands and never at the token itself: they are asked
outside of the model's graph, before the step that reads the token. A transform or regulator says how it is served by a
method `served_form`, in its own file; what has none says why in `not_served`, and is refused by that reason.

Limitations: full matrices; projections of anything but the token itself.
"""

import math
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Fitted

GateActivation = Literal["sigmoid", "relu", "step"]

# Below this rate nothing fades over any sequence: the weight of n tokens is n.
UNFADING = 1e-9


class Adding(NamedTuple):
    """How the scores of a gate add up to evidence: `prior` tokens of score 0 come first, and h is 1/2 at `cut`.

    memory: what is left of a score at the next token, 0 to 1.
    """

    prior: float
    cut: float
    memory: float

    @property
    def fade(self) -> float:
        """-ln(memory), from 0 to 90, and for a memory of 1 the least that counts as adding up."""
        return max(-math.log(max(self.memory, 1e-38)), 1e-3 * UNFADING)


class Gate(NamedTuple):
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

    m: mean of the prompt's tokens so far but its first, and none before there is one; 0 without any.
    """

    direction: Float[Tensor, " dim"]
    threshold: Float[Tensor, ""]
    above: bool


class ServedEdit(NamedTuple):
    """A transform: its affine part, and as many pairs of vectors (dim,) as it reads projections and writes along."""

    affine: AffineEdit
    reads: tuple[Float[Tensor, " dim"], ...] = ()
    writes: tuple[Float[Tensor, " dim"], ...] = ()


class ServedGain(NamedTuple):
    """A regulator: a product of these. places: regulators that look at places alone, such as `Schedule` and `Turns`."""

    factor: float = 1.0
    gates: tuple[Gate, ...] = ()
    neurons: tuple[Neurons, ...] = ()
    places: tuple[Fitted, ...] = ()
    prompts: tuple[PromptCondition, ...] = ()

    def times(self, other: "ServedGain") -> "ServedGain":
        """Return the product of two regulators."""
        return ServedGain(
            self.factor * other.factor,
            self.gates + other.gates,
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
