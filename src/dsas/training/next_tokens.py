"""Next tokens: the common part of objectives that compare the model's next tokens instead of its activations.

    divergence  =  sum over tokens of KL(p || p')              p and p': distributions of the next token; in nats

The distributions of the unsteered model are computed anew in every step, because over the whole vocabulary they would
fill the memory. Micro-batches return sums over tokens, so that their gradients add up to that of the whole step.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsas.model.foreign import Foreign
from dsas.model.kl_divergence import kl_divergence
from dsas.model.rendering import Rendered
from dsas.model.token_batches import Batch, batches
from dsas.runtime.rule import Rule
from dsas.training.learner import Gradient, Learner
from dsas.training.passes import Seen, Work, cheaply
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE, Ranks


class PairData(NamedTuple):
    """The data to learn from.

    pairs: pairs of rows, as the objective makes them. target: pooled target activations of each rule, (sample, dim),
    used for their size alone. pad: any token number. batch_size: texts per pass.
    """

    pairs: Sequence[Foreign]
    control: Sequence[Rendered]
    target: Sequence[Tensor]
    held_pairs: Sequence[Foreign] = ()
    held_control: Sequence[Rendered] = ()
    pad: int = 0
    batch_size: int = 32


class StepOptions(NamedTuple):
    """The number of pairs, and of control texts, per step; the seed of their order; and the weight of control, >= 0."""

    pairs: int
    control_weight: float
    seed: int


class PairsLearner(Learner):
    """Learns from pairs, some in each step, and preserves the next tokens of control texts.

    Contract: a subclass is final and defines in `terms` what is minimised over the pairs.
    """

    def __init__(
        self, work: Work, rules: Sequence[Rule], data: PairData, plan: Plan, per_step: StepOptions, ranks: Ranks = ALONE
    ) -> None:
        """Open the model. `work.run` must return something with `logits`."""
        super().__init__(work, rules, data.target, plan, ranks)
        self.data, self.per_step = data, per_step

    @abstractmethod
    def terms(self, pairs: Sequence[Foreign]) -> Iterator[tuple[Tensor, list[Seen]]]:
        """Yield the share of each of this rank's micro-batches in the term; each pass runs on demand."""

    @final
    def gradient(self, number: int = 0) -> Gradient:
        """Put the gradient of the loss of step `number`, from its pairs and control texts, into the leaves."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        count, weight, seed = self.per_step
        pairs = turn(self.data.pairs, number, count, seed)
        control = turn(self.data.control, number, count, seed) if weight > 0 else []
        term = moved = 0.0
        seen: list[list[Seen]] = []
        for share, some in self.terms(pairs):
            share.backward()
            term += float(share.detach())
            seen.append([one._replace(value=one.value.detach()) for one in some])
        for share in self._kept(control):
            (weight * share).backward()
            moved += float(share.detach())
        term, moved = self.with_others([term, moved], gradients=True)
        return Gradient(term, moved, term + weight * moved, self.dead(self.ranks.gathered(seen)))

    @final
    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss's terms on all held-out pairs and control texts."""
        term = sum((float(share) for share, _ in self.terms(self.data.held_pairs)), 0.0)
        weight = self.per_step.control_weight
        held = self.data.held_control if weight > 0 else []
        moved = sum((float(share) for share in self._kept(held)), 0.0)
        term, moved = self.with_others([term, moved])
        found = {"held_term": term, "held_control": moved, "held_loss": term + weight * moved}
        return self.ranks.from_first(lambda: found)

    def _kept(self, control: Sequence[Rendered]) -> Iterator[Tensor]:
        """Yield the share of each of this rank's micro-batches in the control term."""
        total = sum(sum(row.asked) for row in control)
        for some in self.ranks.local(cut(control, self.data.batch_size, self.ranks.count)):
            batch = batch_of(some, self.data.pad)
            with torch.no_grad():
                before = self.passes.outputs(batch, steered=False)[0].logits
            after = self.passes.outputs(batch)[0].logits
            mask = placed(batch, [row.asked for row in some]).to(after.device)
            yield divergence(after[mask], before[mask]) / total


def batch_of(rows: Sequence[Rendered], pad: int) -> Batch:
    """Return rows as one batch, padded on the right with the token `pad`."""
    ids, counted, prompts = zip(*((row.ids, row.counted, row.prompt) for row in rows), strict=True)
    (batch,) = batches(ids, len(rows), pad=pad, side="right", counted=counted, prompts=prompts)
    return batch


def placed(batch: Batch, flags: Sequence[Sequence[bool]]) -> Bool[Tensor, "row token"]:
    """Return the flags of each row's tokens where the batch has them."""
    found = torch.zeros_like(batch.mask)
    for place, row in enumerate(batch.rows):
        found[place, : len(flags[row])] = torch.tensor(flags[row])
    return found


def divergence(
    after: Float[Tensor, "token vocabulary"], before: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, ""]:
    """Return KL(before || after) of logits, summed over tokens, in float32 or better; recomputed going backward."""
    return cheaply(_divergence, after, before)


def turn(items: Sequence[Foreign], number: int, count: int, seed: int) -> list[Foreign]:
    """Return the items of step `number`, `count` at a time: all in turn, in a new order each round."""
    count = min(count, len(items))
    orders: dict[int, list[int]] = {}
    found = []
    for place in range(number * count, (number + 1) * count):
        time_round, within = divmod(place, len(items))
        if time_round not in orders:
            draw = torch.Generator().manual_seed(seed * 1_000_003 + time_round)
            orders[time_round] = torch.randperm(len(items), generator=draw).tolist()
        found.append(items[orders[time_round][within]])
    return found


def cut(items: Sequence[Foreign], size: int, ranks: int) -> list[Sequence[Foreign]]:
    """Return the items in parts of at most `size`, small enough for every rank to get one."""
    size = max(1, min(size, -(-len(items) // ranks)))
    return [items[start : start + size] for start in range(0, len(items), size)]


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32 or better."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _divergence(after: Tensor, before: Tensor) -> Tensor:
    return kl_divergence(before, after).sum()
