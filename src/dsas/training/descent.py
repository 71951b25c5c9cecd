"""Descent: how parameters move down a gradient that the trainer has put into them.

    rate(k)  =  rate * (floor + (1 - floor) (1 + cos(pi k / steps)) / 2)             then the proximal step

Learning rates have no unit: an offset moves in units of its neuron's activations, and theta in one over them, as if the
activations had been scaled to a root mean square of 1. Otherwise the right rate for one model would be a thousand times
too small for the offsets of another and too large for its regulators.

Source: LinEAS (arXiv 2503.10679) for cosine and proximal step; the units are new here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from dsas.files.json_values import JsonObject
from dsas.runtime.rule import Rule
from dsas.training.plan import Plan
from dsas.training.proximal import shrink_line_

EPS = 1e-15  # epsilon of Adam: gradients with large activations are small, and 1e-8 would dominate them


class Descent:
    """The optimiser of a plan, acting on leaves in units of the activations."""

    def __init__(self, rules: Sequence[Rule], leaves: dict[str, Tensor], sizes: Sequence[Tensor], plan: Plan) -> None:
        """Move the leaves of `rules`. sizes: root mean square of each neuron, (dim,) for each site."""
        self._rules, self._leaves, self._sizes, self._plan = list(rules), leaves, list(sizes), plan
        self.optimiser = self._optimiser()
        self._scales = self._scales_of_leaves()

    def step(self, number: int) -> None:
        """Take step `number`, from 0."""
        share = self.share(number)
        for group in self.optimiser.param_groups:
            group["lr"] = share * group["first"]
        before = {name: self._leaves[name].detach().clone() for name in self._scales}
        self.optimiser.step()
        for name, old in before.items():
            leaf = self._leaves[name].detach()
            leaf.copy_(torch.lerp(old, leaf, self._scales[name]))
        tau = self._plan.sparsity * share * self._plan.optimiser.rate
        if tau > 0:
            for rule, own in zip(self._rules, self._sizes, strict=True):
                shrink_line_(rule.transform.get_buffer("slope"), rule.transform.get_buffer("offset"), own, tau)

    def share(self, number: int) -> float:
        """Return the rate of step `number`, divided by the first one."""
        floor = self._plan.optimiser.floor
        return floor + (1 - floor) * (1 + math.cos(math.pi * number / self._plan.steps)) / 2

    def _optimiser(self) -> torch.optim.Optimizer:
        wanted = self._plan.optimiser
        parts = {"transform": wanted.rate, "regulator": wanted.regulator_rate}
        groups: list[JsonObject] = [
            {"params": members, "lr": rate, "first": rate}
            for part, rate in parts.items()
            if (members := [value for name, value in self._leaves.items() if f".{part}." in name])
        ]
        return torch.optim.Adam(groups, eps=EPS) if wanted.name == "adam" else torch.optim.SGD(groups)

    def _scales_of_leaves(self) -> dict[str, Tensor]:
        """Return, by name, the factor that turns a step of the optimiser into one in units of the activations.

        Adam's steps have the size of the rate in any unit; those of gradient descent are in the gradient's unit.
        """
        power = 1 if self._plan.optimiser.name == "adam" else 2
        powers = {"offset": power, "vector": power, "theta": -power}
        parts = {name: name.split(".") for name in self._leaves}
        return {name: self._sizes[int(own[0])] ** powers[own[-1]] for name, own in parts.items() if own[-1] in powers}
