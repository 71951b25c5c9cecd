"""Learner: what the loop needs in order to learn rules: gradients, steps, evaluations, and a state to resume from.

    each step:  gradient of the loss  ->  optimiser  ->  proximal step, tau = sparsity x rate

Subclasses define the loss: `dsas.training.trainer` compares activations at the sites, `dsas.training.next_tokens` the
distributions of next tokens.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from dsas.errors import OptionError
from dsas.runtime.rule import Rule
from dsas.training.descent import Descent
from dsas.training.learning import leaves, support
from dsas.training.passes import Passes, Seen, Work
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE, Ranks
from dsas.training.records import Row
from dsas.training.terms import size


class Gradient(NamedTuple):
    """The terms of the loss whose gradient the leaves now hold.

    term: the part of the loss that moves the source. control: the part that keeps control texts, without its weight.
    loss: the sum of both as the objective weighs them. dead: rules that were 0 on every source token.
    """

    term: float
    control: float
    loss: float
    dead: list[int]


class Learner(ABC):
    """Learns the leaves of `rules`, in place; closing the learner restores the model.

    Contract: a subclass defines the loss in `gradient` and `look`. It runs the model through `passes`, whose steered
    activations carry gradients to the leaves, and clears old gradients with `descent.optimiser.zero_grad`. Ranks that
    train together share the batches: it runs those of `ranks.local`, and sums with `with_others`.
    """

    def __init__(
        self, work: Work, rules: Sequence[Rule], target: Sequence[Tensor], plan: Plan, ranks: Ranks = ALONE
    ) -> None:
        """Open the model. target: pooled target activations of each rule's site, which set the units of its numbers."""
        self.rules, self.plan, self.ranks = list(rules), plan, ranks
        self._work, self.leaves = work, leaves(self.rules)
        sizes = [size(t).to(next(r.transform.buffers())) for t, r in zip(target, rules, strict=True)]
        self.descent = Descent(self.rules, self.leaves, sizes, plan)
        self.passes = Passes(work, self.rules).__enter__()

    @abstractmethod
    def gradient(self, number: int = 0) -> Gradient:
        """Put the gradient of the loss of step `number` into the leaves and return the terms."""

    @abstractmethod
    def look(self) -> dict[str, float]:
        """Return columns of the log (fields of `Row`) on the held-out texts, including `held_loss`."""

    @final
    def close(self) -> None:
        """Take the hooks off and restore requires_grad of the model's weights."""
        self.passes.__exit__()

    @final
    def step(self, number: int) -> Row:
        """Take step `number`, from 0, and return its line of the log; the held-out columns are empty.

        Raises OptionError when a regulator is 0 on every source token before anything was learned.
        """
        began = time.perf_counter()
        found = self.gradient(number)
        if number == 0 and found.dead:
            sites = ", ".join(str(self.rules[place].site) for place in found.dead)
            raise OptionError(
                f"the regulator is 0 on every source token, and its gradient with it, so it can never learn: {sites}; "
                "start from a fitted regulator or from scratch"
            )
        row = self.row(number)._replace(dead=len(found.dead))
        if not math.isfinite(found.loss):
            return row
        self.descent.step(number)
        terms = {"loss": found.loss, "term": found.term, "control": found.control}
        return row._replace(**terms, support=support(self.rules), seconds=time.perf_counter() - began)

    @final
    def row(self, number: int) -> Row:
        """Return the line of step `number` without a loss, for before the step or when it cannot be taken."""
        rate = self.descent.share(number) * self.plan.optimiser.rate
        return Row(number, None, None, None, support(self.rules), 0, rate, 0.0)

    @final
    def state(self) -> dict[str, Tensor]:
        """Return copies of all that a later step depends on: parameters and the optimiser's state."""
        found = {f"leaf {name}": value.detach().clone() for name, value in self.leaves.items()}
        for name, value in self.leaves.items():
            for key, kept in self.descent.optimiser.state.get(value, {}).items():
                found[f"optimiser {key} {name}"] = torch.as_tensor(kept).clone()
        return found

    @final
    def restore(self, state: dict[str, Tensor]) -> None:
        """Restore what `state` returned."""
        with torch.no_grad():
            for name, value in self.leaves.items():
                value.copy_(state[f"leaf {name}"])
        self.descent.optimiser.state.clear()
        for label, kept in state.items():
            kind, _, rest = label.partition(" ")
            if kind == "optimiser":
                key, _, name = rest.partition(" ")
                leaf = self.leaves[name]
                device = kept.device if key == "step" else leaf.device
                self.descent.optimiser.state[leaf][key] = kept.to(device, copy=True)

    @final
    def with_others(self, terms: Sequence[float], *, gradients: bool = False) -> list[float]:
        """Return the sums of all ranks' terms, and give every leaf the sum of their gradients."""
        if self.ranks.count == 1:
            return list(terms)
        sums = torch.tensor(terms, dtype=torch.float64)
        for leaf in self.leaves.values() if gradients else ():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        slopes = [leaf.grad for leaf in self.leaves.values() if gradients and leaf.grad is not None]
        self.ranks.add_up([sums, *slopes])
        return sums.tolist()

    @final
    def dead(self, seen: Sequence[Sequence[Seen]]) -> list[int]:
        """Return the rules that were 0 on every real token of some batches."""
        return [site for site in range(len(self.rules)) if not any(part[site].alive for part in seen)]
