"""Trainer: a learner that compares activations at the sites, for any model and batches.

    loss  =  transport + control_weight * control              both as in `dsas.training.terms`; all texts per step

The transport term couples all source samples, so its gradient for one micro-batch needs the others. With several
micro-batches it takes two passes: the first, without gradients, collects and sorts every sample's pooled vector s at
every site, which gives d loss / d s in closed form; the second propagates these numbers back through one micro-batch
after another. A row's activations depend on that row alone, so this is the gradient of the full batch, at the cost of
one more forward pass. The control term is a sum over tokens and needs one pass.

Several ranks share the micro-batches (`dsas.training.ranks`): each runs its own, receives the others' pooled vectors
before the sort, propagates the slopes of its own rows, and then all sum their gradients.

Control activations of the unsteered model are read once and kept in the model's own precision: tokens x width x sites
numbers, which saves one forward pass per step.

Source: LinEAS (arXiv 2503.10679) for transport. Limitations: every step reads all texts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, final

import torch
from torch import Tensor

from dsas.model.conversation import Content
from dsas.model.foreign import Foreign
from dsas.regulators.posterior import auroc
from dsas.runtime.rule import Rule
from dsas.training.learner import Gradient, Learner
from dsas.training.passes import Seen, Work, cheaply, plain, strengths_of
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE, Ranks
from dsas.training.terms import drift, goal, transport

TINY = 1e-30


class Data(NamedTuple):
    """Batches as `Work.run` takes them, and for each rule the pooled target activations (sample, dim)."""

    source: Sequence[Foreign]
    control: Sequence[Foreign]
    target: Sequence[Tensor]
    held_source: Sequence[Foreign] = ()
    held_control: Sequence[Foreign] = ()


def data_of(
    texts: Mapping[str, list[Content]], target: Sequence[Tensor], batches: Callable[[list[Content]], Sequence[Foreign]]
) -> Data:
    """Return the data of texts by set; `batches` makes micro-batches of texts."""
    names = ("source", "control", "held_source", "held_control")
    source, control, held_source, held_control = (batches(texts[name]) for name in names)
    return Data(source, control, target, held_source, held_control)


@final
class Trainer(Learner):
    """Learns from the activations at the sites: LinEAS and E2E-DSAS."""

    def __init__(
        self,
        work: Work,
        rules: Sequence[Rule],
        data: Data,
        plan: Plan,
        ranks: Ranks = ALONE,
        *,
        control_weight: float = 0.0,
    ) -> None:
        """Open the model and, unless control has weight 0, read its unsteered activations on the control texts.

        ranks: the ranks that share the batches; every rank is given all of them.
        """
        super().__init__(work, rules, data.target, plan, ranks)
        self.data, self._weight = data, control_weight
        self._units = [float(t.double().square().mean().sqrt().clamp(min=TINY)) for t in data.target]
        try:
            self._rows = self._rows_in(data.source)
            self._goals = self._goals_for(self._rows)
            parts = (data.control, data.held_control) if control_weight > 0 else ()
            batches = [batch for part in parts for batch in self.ranks.local(part)]
            with torch.no_grad():
                self._unsteered = [self._values(self.passes.tokens(batch, steered=False)) for batch in batches]
        except BaseException:
            self.close()
            raise

    def gradient(self, number: int = 0) -> Gradient:
        """Put the gradient of the loss over all texts into the leaves, and return the terms."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        term, dead = self._transport()
        moved = 0.0
        if self._weight > 0:
            for share in self._control(self.data.control, self._unsteered):
                (self._weight * share).backward()
                moved += float(share.detach())
        (moved,) = self.with_others([moved], gradients=True)
        return Gradient(term, moved, term + self._weight * moved, dead)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss's terms on the held-out texts, and how well the strengths tell source from control there.

        The transport term is scaled to the number of source texts, so that both terms have the same weight as in
        training.
        """
        rows = self._rows_in(self.data.held_source)
        seen = self._gathered([self.passes.pooled(batch) for batch in self.ranks.local(self.data.held_source)])
        term = float(transport(self._pooled(seen), self._goals_for(rows), self._units)) * self._rows / rows
        moved = 0.0
        if self._weight > 0:
            kept = self._unsteered[len(self.ranks.local(self.data.control)) :]
            moved = sum(float(share) for share in self._control(self.data.held_control, kept))
        (moved,) = self.with_others([moved])
        found = {"held_term": term, "held_control": moved, "held_loss": term + self._weight * moved}
        quiet = self._gathered([self.passes.pooled(batch) for batch in self.ranks.local(self.data.held_control)])
        if quiet:
            found["separation"] = float(auroc(strengths_of(seen), strengths_of(quiet)).mean())
        return self.ranks.from_first(lambda: found)  # ranks decide by it, so they must agree to the bit

    def _transport(self) -> tuple[float, list[int]]:
        batches = self.ranks.local(self.data.source)
        with torch.no_grad():
            seen = [self.passes.pooled(batch) for batch in batches[:-1]]
        seen += [self.passes.pooled(batch) for batch in batches[-1:]]  # its graph is kept: it is not run again
        gathered = self._gathered(seen)
        pooled = [values.requires_grad_() for values in self._pooled(gathered)]
        loss = transport(pooled, self._goals, self._units)
        sizes = [len(part[0].value) for part in gathered]
        slopes = [self.ranks.local(slope.split(sizes)) for slope in torch.autograd.grad(loss, pooled)]
        if batches:
            torch.autograd.backward(self._values(seen.pop()), [slope[-1] for slope in slopes])
        for place, batch in enumerate(batches[:-1]):
            again = self.passes.pooled(batch)
            torch.autograd.backward(self._values(again), [slope[place] for slope in slopes])
        return float(loss.detach()), self.dead(gathered)

    def _gathered(self, seen: list[list[Seen]]) -> list[list[Seen]]:
        """Return what all ranks saw of their batches, in order and without graphs, given this rank's part."""
        return self.ranks.gathered([[plain(one, on_cpu=self.ranks.count > 1) for one in part] for part in seen])

    def _pooled(self, seen: list[list[Seen]]) -> list[Tensor]:
        """Return for each rule the vectors of all rows, on the rule's device."""
        sites = zip(range(len(self.rules)), self._goals, strict=True)
        return [torch.cat([part[site].value for part in seen]).to(goal.device) for site, goal in sites]

    def _control(self, batches: Sequence[Foreign], unsteered: Sequence[list[Tensor]]) -> Iterator[Tensor]:
        """Yield the share of each of this rank's batches in the control term; each pass runs on demand."""
        batches = self.ranks.local(batches)
        mine = [kept for kept, _ in zip(unsteered, batches, strict=False)]
        sizes = [sum(len(kept[site]) for kept in mine) for site in range(len(self.rules))]
        totals = torch.tensor(sizes, dtype=torch.float64)
        self.ranks.add_up([totals])
        for batch, kept in zip(batches, mine, strict=True):
            seen = self._values(self.passes.tokens(batch))
            each = zip(seen, kept, totals.tolist(), self._units, strict=True)
            moved = [cheaply(drift, value, old) / (total * unit) for value, old, total, unit in each]
            yield torch.stack([one.to(moved[0].device) for one in moved]).mean()

    def _rows_in(self, batches: Sequence[Foreign]) -> int:
        return sum(len(self._work.real(batch)) for batch in batches)

    def _goals_for(self, rows: int) -> list[Tensor]:
        lines = [rule.transform.get_buffer("slope") for rule in self.rules]
        return [goal(t.to(line), rows) for t, line in zip(self.data.target, lines, strict=True)]

    @staticmethod
    def _values(seen: list[Seen]) -> list[Tensor]:
        return [one.value for one in seen]
