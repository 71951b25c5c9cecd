"""Preference: a learner that makes a model prefer the target's texts to the source's, and say of control what it said.

    d(x)     =  log p'(x) - log p(x)                      p' steered, p not; in nats, of the tokens where a pair parts
    term     =  mean over pairs of  log(1 + exp(-beta (d(target) - d(source))))
    control  =  mean over tokens of control texts of KL(p || p')              loss = term + gamma * control

Source text i and target text i are a pair, such as two continuations of one prompt. What both begin with is the same
tokens in the same places, so it drops out of d(target) - d(source): no prompt has to be named.

A step takes some pairs and some control texts: all in turn, in an order drawn anew each time round, which seed and
number of the step decide. The unsteered model reads all pairs once, and the control texts of every step anew, since
their distributions over the vocabulary would fill the memory. Micro-batches hold both texts of a pair; terms are sums
over pairs and over tokens, so that their gradients add up to that of the whole step.

Source: BiPO (arXiv 2406.00045), which learns one vector at one layer by the loss of DPO (arXiv 2305.18290). The
regulators, all sites at once and the control term are ours. Left out: pairs of unequal weight.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, softplus

from dsas.errors import TextsError
from dsas.model.token_batches import Batch, batches
from dsas.runtime.rule import Rule
from dsas.training.learner import Gradient, Learner
from dsas.training.passes import Seen, Work, cheaply
from dsas.training.plan import Plan
from dsas.training.ranks import Ranks

Tokens = list[int]


class Pair(NamedTuple):
    """The tokens of a source and a target text; from `first` on they are told apart."""

    source: Tokens
    target: Tokens
    first: int


class Choices(NamedTuple):
    """What is learned from. target: pooled target activations of each rule, (sample, dim), for their size alone.

    seed: of the order in which pairs and control texts come. pad: any token number. batch_size: texts a pass.
    """

    pairs: Sequence[Pair]
    control: Sequence[Tokens]
    target: Sequence[Tensor]
    held_pairs: Sequence[Pair] = ()
    held_control: Sequence[Tokens] = ()
    pad: int = 0
    batch_size: int = 32
    seed: int = 0


def pairs_of(source: Sequence[Tokens], target: Sequence[Tokens]) -> list[Pair]:
    """Return pair after pair; those that part at their first token, before which nothing is said, from the second on.

    Raises TextsError for a pair whose tokens are the same.
    """
    found = []
    for one, other in zip(source, target, strict=True):
        same = zip(one, other, strict=False)
        first = next((place for place, (a, b) in enumerate(same) if a != b), min(len(one), len(other)))
        if first == max(len(one), len(other)):
            raise TextsError(
                f"a source text and its target are the same in all {first} tokens that are read: nothing is to be "
                "preferred; where texts were cut, raise max_tokens"
            )
        found.append(Pair(one, other, max(1, first)))
    return found


@final
class Preference(Learner):
    """Learns from what the model would say."""

    def __init__(
        self, work: Work, rules: Sequence[Rule], data: Choices, plan: Plan, ranks: Ranks | None = None
    ) -> None:
        """Open the model and ask the unsteered one about all pairs. `work.run` must return something with `logits`."""
        super().__init__(work, rules, data.target, plan, ranks)
        self.data = data
        try:
            pairs = [*data.pairs, *data.held_pairs]
            cut = [pairs[start : start + self._size] for start in range(0, len(pairs), self._size)]
            with torch.no_grad():
                mine = [self._likelihoods(some, steered=False)[0].cpu() for some in self.ranks.mine(cut)]
            self._before = dict(zip(map(_key, pairs), torch.cat(self.ranks.joined(mine)), strict=True))
        except BaseException:
            self.close()
            raise

    def gradient(self, number: int = 0) -> Gradient:
        """Put the gradient of the loss of step `number`, from its pairs and control texts, into the leaves."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        objective = self.plan.objective
        pairs = _turn(self.data.pairs, number, objective.per_step, self.data.seed)
        control = _turn(self.data.control, number, objective.per_step, self.data.seed) if objective.gamma > 0 else []
        term = moved = 0.0
        seen: list[list[Seen]] = []
        for share, some in self._preferred(pairs):
            share.backward()
            term += float(share.detach())
            seen.append([one._replace(value=one.value.detach()) for one in some])
        for share in self._kept(control):
            (objective.gamma * share).backward()
            moved += float(share.detach())
        sums = self.with_others([term, moved], gradients=True)
        dead = self.dead(self.ranks.joined(seen))
        return Gradient(sums[0], sums[1], dead)

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss's terms on all held-out pairs and control texts."""
        term = sum(float(share) for share, _ in self._preferred(self.data.held_pairs))
        gamma = self.plan.objective.gamma
        moved = sum(float(share) for share in self._kept(self.data.held_control)) if gamma > 0 else 0.0
        term, moved = self.with_others([term, moved])
        found = {"held_term": term, "held_control": moved, "held_loss": term + gamma * moved}
        return self.ranks.from_first(lambda: found)

    @property
    def _size(self) -> int:
        return max(1, self.data.batch_size // 2)

    def _preferred(self, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, list[Seen]]]:
        """Yield the share of each of this rank's micro-batches in the term; the pass is run when it is asked for."""
        for some in self.ranks.mine(_cut(pairs, self._size, self.ranks.count)):
            after, seen = self._likelihoods(some, steered=True)
            before = torch.stack([self._before[_key(pair)] for pair in some]).to(after)
            moved = after - before
            yield softplus(-self.plan.objective.beta * (moved[:, 1] - moved[:, 0])).sum() / len(pairs), seen

    def _kept(self, control: Sequence[Tokens]) -> Iterator[Tensor]:
        """Yield the share of each of this rank's micro-batches in the control term."""
        total = sum(map(len, control))
        for some in self.ranks.mine(_cut(control, self.data.batch_size, self.ranks.count)):
            batch = self._batch(some)
            with torch.no_grad():
                before = self._passes.outputs(batch, steered=False)[0].logits
            after = self._passes.outputs(batch)[0].logits
            mask = batch.mask.to(after.device)
            yield cheaply(_divergence, after[mask], before[mask]) / total

    def _likelihoods(self, pairs: Sequence[Pair], *, steered: bool) -> tuple[Float[Tensor, "pair 2"], list[Seen]]:
        """Return the log-likelihoods of source and target, of their tokens from `first` on."""
        rows = [row for pair in pairs for row in (pair.source, pair.target)]
        batch = self._batch(rows)
        given, seen = self._passes.outputs(batch, steered=steered)
        tokens = batch.tokens.to(given.logits.device)
        judged = batch.mask[:, 1:].clone()
        for place, row in enumerate(batch.rows):
            judged[place, : pairs[row // 2].first - 1] = False
        judged = judged.to(tokens.device)
        each = cheaply(_log_likelihood, given.logits[:, :-1][judged], tokens[:, 1:][judged])
        sums = each.new_zeros(len(rows)).index_add(0, judged.nonzero()[:, 0], each)
        back = torch.tensor(batch.rows, device=sums.device).argsort()
        return sums[back].view(-1, 2), seen

    def _batch(self, rows: Sequence[Tokens]) -> Batch:
        (batch,) = batches(list(rows), len(rows), pad=self.data.pad, side="right")
        return batch


def _log_likelihood(logits: Float[Tensor, "token vocabulary"], tokens: Tensor) -> Float[Tensor, " token"]:
    return -cross_entropy(_wide(logits), tokens, reduction="none")


def _divergence(after: Float[Tensor, "token vocabulary"], before: Float[Tensor, "token vocabulary"]) -> Tensor:
    p, q = _wide(before).log_softmax(-1), _wide(after).log_softmax(-1)
    return kl_div(q, p, reduction="sum", log_target=True)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _key(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return tuple(pair.source), tuple(pair.target)


def _turn(items: Sequence[Any], number: int, count: int, seed: int) -> list[Any]:
    """Return what comes at step `number`, `count` at a time: all in turn, in another order each time round."""
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


def _cut(items: Sequence[Any], size: int, ranks: int) -> list[Sequence[Any]]:
    """Return the items in parts of at most `size`, small enough for every rank to get one."""
    size = max(1, min(size, -(-len(items) // ranks)))
    return [items[start : start + size] for start in range(0, len(items), size)]
