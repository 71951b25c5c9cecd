"""Linear regulators: one projection of the token, through an activation function: h(t) = activation(theta . t + bias).

They differ in what they fit and in `form`, the activation function. Because of their common form they can be computed
in one step with an affine transform (`dsas.methods.affine_edit`), and served row by row (`dsas.serving`).
"""

from abc import ABC
from typing import ClassVar, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.methods.affine_edit import ACTIVATIONS, Form
from dsas.methods.linear_boundary import Boundary
from dsas.methods.served_form import Projection, ServedGain
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import Regulator


class LinearRegulator(Regulator, ABC):
    """A projection and its activation: theta (dim,) in units of one over the activation, bias a scalar.

    Contract: a subclass has a `form`, and its `fit` finds the plane theta . t + bias = 0.
    """

    form: ClassVar[Form]
    theta: Tensor
    bias: Tensor

    @final
    def __init__(self, theta: Float[Tensor, " dim"], bias: Float[Tensor, ""]) -> None:
        """Keep the projection and its offset."""
        super().__init__()
        self.keep(theta=theta, bias=bias)

    @final
    @classmethod
    def beyond(cls, boundary: Boundary, unit: float = 1.0) -> "LinearRegulator":
        """Return the regulator whose score is the boundary's log-odds, divided by `unit` > 0."""
        theta = torch.from_numpy(boundary.theta / unit).float()
        return cls(theta, torch.tensor(boundary.bias / unit, dtype=torch.float32))

    @final
    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return activation(theta . t + bias), computed in float32 or better."""
        return ACTIVATIONS[self.form](t.to(self.theta.dtype) @ self.theta + self.bias).unsqueeze(-1)

    @final
    def served_form(self) -> ServedGain:
        """Return the projection and its activation."""
        return ServedGain(projections=(Projection(self.theta, self.bias, self.form),))
