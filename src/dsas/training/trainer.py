"""Trainer: the loop that learns rules, whatever the model and its batches are.

    each step:  gradient of  transport + gamma * control   ->  optimiser  ->  proximal step, tau = sparsity x rate

The transport term couples all source samples, so its gradient for a micro-batch needs the others. With more than one
micro-batch it is taken in two passes: the first, without gradients, collects every sample's pooled vector s at every
site, sorts them, and so knows d loss / d s in closed form; the second sends those numbers back through one micro-batch
after another. A row's activations depend on that row alone, so this is the gradient of the full batch, at the price of
one more forward pass. The control term is a sum over tokens and needs no such care.

Several ranks share the micro-batches (`dsas.training.ranks`): each runs its own, learns the others' pooled vectors
before the sort, sends back the slopes of its own rows, and then all add up their gradients.

Control activations of the unsteered model are read once and kept, in the model's own precision: tokens x width x sites
numbers, against one more forward pass a step.

Source: LinEAS (arXiv 2503.10679) for transport. Left out: steps on random parts of the texts.
"""

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dsas.applied import Rule
from dsas.errors import OptionError
from dsas.regulators.posterior import auroc
from dsas.training.descent import Descent
from dsas.training.learning import leaves, support
from dsas.training.objectives import drift, goal, size, transport
from dsas.training.passes import Passes, Seen, Work, cheaply, plain, strengths_of
from dsas.training.plan import Plan
from dsas.training.ranks import Ranks
from dsas.training.records import Row

TINY = 1e-30


class Data(NamedTuple):
    """Batches as `Work.run` takes them, and for each rule the pooled target activations (sample, dim)."""

    source: Sequence[Any]
    control: Sequence[Any]
    target: Sequence[Tensor]
    held_source: Sequence[Any] = ()
    held_control: Sequence[Any] = ()


class Gradient(NamedTuple):
    """The terms of the loss whose gradient the leaves now hold; dead: rules that were 0 on every source token."""

    transport: float
    control: float
    dead: list[int]


class Trainer:
    """Learns the leaves of `rules`, in place; the model is as it was once the trainer is closed."""

    def __init__(self, work: Work, rules: Sequence[Rule], data: Data, plan: Plan, ranks: Ranks | None = None) -> None:
        """Open the model and read what the unsteered model does to the control texts.

        ranks: with whom the batches are shared, of which every rank is given all; None is nobody.
        """
        self.rules, self.data, self.plan, self.ranks = list(rules), data, plan, ranks or Ranks()
        self._work, self.leaves = work, leaves(self.rules)
        sizes = [size(t).to(r.transform.get_buffer("slope")) for t, r in zip(data.target, rules, strict=True)]
        self.descent = Descent(self.rules, self.leaves, sizes, plan)
        self._units = [float(t.double().square().mean().sqrt().clamp(min=TINY)) for t in data.target]
        self._passes = Passes(work, self.rules).__enter__()
        try:
            self._rows = self._rows_in(data.source)
            self._goals = self._goals_for(self._rows)
            parts = (data.control, data.held_control) if plan.objective.gamma > 0 else ()
            batches = [batch for part in parts for batch in self.ranks.mine(part)]
            with torch.no_grad():
                self._unsteered = [self._values(self._passes.tokens(batch, steered=False)) for batch in batches]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Take the hooks off and give the model's weights their flags back."""
        self._passes.__exit__()

    def gradient(self) -> Gradient:
        """Put the gradient of the loss into the leaves and return the terms."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        term, dead = self._transport()
        moved = 0.0
        if self.plan.objective.gamma > 0:
            for share in self._control(self.data.control, self._unsteered):
                (self.plan.objective.gamma * share).backward()
                moved += float(share.detach())
        return Gradient(term, self._with_others(moved, gradients=True), dead)

    def step(self, number: int) -> Row:
        """Take step `number`, from 0, and return what it began from; the held-out columns are empty.

        Raises OptionError when a regulator is 0 on every source token before anything was learned.
        """
        began = time.perf_counter()
        found = self.gradient()
        if number == 0 and found.dead:
            sites = ", ".join(str(self.rules[place].site) for place in found.dead)
            raise OptionError(
                f"the regulator is 0 on every source token, and its gradient with it, so it can never learn: {sites}; "
                "start from a fitted regulator or from scratch"
            )
        loss = found.transport + self.plan.objective.gamma * found.control
        row = self.row(number)._replace(dead=len(found.dead))
        if not math.isfinite(loss):
            return row
        self.descent.step(number)
        terms = {"loss": loss, "transport": found.transport, "control": found.control}
        return row._replace(**terms, support=support(self.rules), seconds=time.perf_counter() - began)

    def row(self, number: int) -> Row:
        """Return the line of step `number` without a loss, as before the step is taken or when it cannot be."""
        rate = self.descent.share(number) * self.plan.optimiser.rate
        return Row(number, None, None, None, support(self.rules), 0, rate, 0.0)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss's terms on the held-out texts, and how well the strengths tell source from control there.

        The transport term is scaled to the number of source texts, so that both terms weigh as they do in training.
        """
        rows = self._rows_in(self.data.held_source)
        seen = self._everyones([self._passes.pooled(batch) for batch in self.ranks.mine(self.data.held_source)])
        term = float(transport(self._pooled(seen), self._goals_for(rows), self._units)) * self._rows / rows
        moved = 0.0
        if self.plan.objective.gamma > 0:
            kept = self._unsteered[len(self.ranks.mine(self.data.control)) :]
            moved = sum(float(share) for share in self._control(self.data.held_control, kept))
        moved = self._with_others(moved)
        found = {"held_transport": term, "held_control": moved, "held_loss": term + self.plan.objective.gamma * moved}
        quiet = self._everyones([self._passes.pooled(batch) for batch in self.ranks.mine(self.data.held_control)])
        if quiet:
            found["separation"] = float(auroc(strengths_of(seen), strengths_of(quiet)).mean())
        return self.ranks.from_first(lambda: found)  # who decide by it must agree to the bit

    def state(self) -> dict[str, Tensor]:
        """Return copies of all that a later step depends on: parameters and what the optimiser remembers."""
        found = {f"leaf {name}": value.detach().clone() for name, value in self.leaves.items()}
        for name, value in self.leaves.items():
            for key, kept in self.descent.optimiser.state.get(value, {}).items():
                found[f"optimiser {key} {name}"] = torch.as_tensor(kept).clone()
        return found

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned."""
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

    def _transport(self) -> tuple[float, list[int]]:
        batches = self.ranks.mine(self.data.source)
        with torch.no_grad():
            seen = [self._passes.pooled(batch) for batch in batches[:-1]]
        seen += [self._passes.pooled(batch) for batch in batches[-1:]]  # its graph is kept: it is not run again
        everyones = self._everyones(seen)
        pooled = [values.requires_grad_() for values in self._pooled(everyones)]
        loss = transport(pooled, self._goals, self._units)
        sizes = [len(part[0].value) for part in everyones]
        slopes = [self.ranks.mine(slope.split(sizes)) for slope in torch.autograd.grad(loss, pooled)]
        if batches:
            torch.autograd.backward(self._values(seen.pop()), [slope[-1] for slope in slopes])
        for place, batch in enumerate(batches[:-1]):
            again = self._passes.pooled(batch)
            torch.autograd.backward(self._values(again), [slope[place] for slope in slopes])
        return float(loss.detach()), self._dead(everyones)

    def _everyones(self, seen: list[list[Seen]]) -> list[list[Seen]]:
        """Return what was seen of the batches of all ranks, in order and without graphs, given this rank's."""
        return self.ranks.joined([[plain(one, on_cpu=self.ranks.count > 1) for one in part] for part in seen])

    def _pooled(self, seen: list[list[Seen]]) -> list[Tensor]:
        """Return for each rule the vectors of all rows, where the rule computes."""
        sites = zip(range(len(self.rules)), self._goals, strict=True)
        return [torch.cat([part[site].value for part in seen]).to(goal.device) for site, goal in sites]

    def _with_others(self, moved: float, *, gradients: bool = False) -> float:
        """Return the control term that all ranks' shares of it make, and give every leaf the gradient they make."""
        if self.ranks.count == 1:
            return moved
        term = torch.tensor(moved, dtype=torch.float64)
        for leaf in self.leaves.values() if gradients else ():
            leaf.grad = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        slopes = [leaf.grad for leaf in self.leaves.values() if gradients and leaf.grad is not None]
        self.ranks.add_up([term, *slopes])
        return float(term)

    def _control(self, batches: Sequence[Any], unsteered: Sequence[list[Tensor]]) -> Iterator[Tensor]:
        """Yield the share of each of this rank's batches in the control term; the pass is run when it is asked for."""
        batches = self.ranks.mine(batches)
        mine = [kept for kept, _ in zip(unsteered, batches, strict=False)]
        sizes = [sum(len(kept[site]) for kept in mine) for site in range(len(self.rules))]
        totals = torch.tensor(sizes, dtype=torch.float64)
        self.ranks.add_up([totals])
        for batch, kept in zip(batches, mine, strict=True):
            seen = self._values(self._passes.tokens(batch))
            each = zip(seen, kept, totals.tolist(), self._units, strict=True)
            moved = [cheaply(drift, value, old) / (total * unit) for value, old, total, unit in each]
            yield torch.stack([one.to(moved[0].device) for one in moved]).mean()

    def _rows_in(self, batches: Sequence[Any]) -> int:
        return sum(len(self._work.real(batch)) for batch in batches)

    def _goals_for(self, rows: int) -> list[Tensor]:
        lines = [rule.transform.get_buffer("slope") for rule in self.rules]
        return [goal(t.to(line), rows) for t, line in zip(self.data.target, lines, strict=True)]

    def _dead(self, seen: list[list[Seen]]) -> list[int]:
        return [site for site in range(len(self.rules)) if not any(part[site].alive for part in seen)]

    @staticmethod
    def _values(seen: list[Seen]) -> list[Tensor]:
        return [one.value for one in seen]
