"""Preference: make a model prefer the target's texts to the source's, and say of control what it said.

    d(x)     =  log p'(x) - log p(x)                      p' steered, p not; in nats, of the tokens where a pair parts
    term     =  mean over pairs of  log(1 + exp(-beta (d(target) - d(source))))
    control  =  mean over tokens of control texts of KL(p || p')        loss = term + control_weight * control

Source text i and target text i are a pair, such as two continuations of one prompt. What both begin with is the same
tokens in the same places, so it drops out of d(target) - d(source): no prompt has to be named. Of conversations, and of
prompts with completions, the answers are judged, end-of-turn token included, each given its own prompt; and control
keeps what was said of its answers.

A step takes some pairs and some control texts: all in turn, in an order drawn anew each time round, which seed and
number of the step decide. The unsteered model reads all pairs once, and the control texts of every step anew, since
their distributions over the vocabulary would fill the memory. Micro-batches hold both texts of a pair; terms are sums
over pairs and over tokens, so that their gradients add up to that of the whole step.

Source: BiPO (arXiv 2406.00045), which learns one vector at one layer by the loss of DPO (arXiv 2305.18290). The
regulators, all sites at once and the control term are ours. Limitations: all pairs weigh the same; only for language
models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, softplus

from dsas.errors import TextsError
from dsas.model.foreign import Foreign
from dsas.model.rendering import Rendered
from dsas.model.sites import Site
from dsas.model.token_batches import Batch, batches
from dsas.regulators.constant import Constant
from dsas.runtime.rule import Rule
from dsas.training.learner import Gradient, Learner
from dsas.training.learning import GATES, Gate, LearnedParts, gated_rule
from dsas.training.objectives.base import Objective, RegulatorStart, TrainingTask
from dsas.training.passes import Seen, Work, cheaply
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE, Ranks


@final
@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """Makes target[i] likelier than source[i], such as two continuations of one prompt; for language models only.

    Starts from the identity, from `Lineas` transforms, or from transforms that add a vector, such as `0.1 * fitted`;
    with constant regulators everywhere the transforms alone are learned.

    beta: of DPO, > 0, in 1/nats; the larger it is, the sooner a pair is preferred enough. pairs_per_step: pairs, and
    control texts, that one step takes. control_weight: weight >= 0 of the divergence on control texts. gate: form of
    the regulators, as in `E2E`. seed: of the order in which pairs and control texts come.
    """

    name: ClassVar[str] = "preference"
    paired: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = True

    beta: float = 0.1
    pairs_per_step: int = 16
    control_weight: float = 3.0
    gate: Gate = "sigmoid"
    seed: int = 0

    def __post_init__(self) -> None:
        known = self.gate in GATES and self.control_weight >= 0 and self.sparsity >= 0
        self.require(
            known and self.beta > 0 and self.pairs_per_step >= 1,
            f"gate one of {tuple(GATES)}, control_weight >= 0, sparsity >= 0, beta > 0 and pairs_per_step >= 1",
        )

    @property
    def needs_control(self) -> bool:
        """Always: what is said of control texts is kept."""
        return True

    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the identity with a regulator of form `gate`."""
        return gated_rule(self.gate, site, sets, scratch=start == "scratch")

    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Return that regulators are learned unless all are constant."""
        return LearnedParts(regulators=not all(isinstance(rule.regulator, Constant) for rule in rules), vectors=True)

    def learner(self, task: TrainingTask) -> Learner:
        """Return what compares likelihoods."""
        examples, rows = task.examples, {name: task.examples.rows(texts) for name, texts in task.texts.items()}
        pairs, held = (pairs_of(rows[f"{part}source"], rows[f"{part}target"]) for part in ("", "held_"))
        pad, size = examples.pad_token(), examples.batch_size
        data = PairData(pairs, rows["control"], task.target, held, rows["held_control"], pad, size)
        return PairLearner(task.work, task.rules, data, task.plan, self, task.ranks)

    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules as they are."""
        return list(rules)


class Pair(NamedTuple):
    """A source and a target as tokens; from the place `first` on they are told apart."""

    source: Rendered
    target: Rendered
    first: int

    @property
    def rows(self) -> tuple[Rendered, Rendered]:
        """Source and target."""
        return self.source, self.target

    @property
    def key(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The tokens of both."""
        return tuple(self.source.ids), tuple(self.target.ids)


class PairData(NamedTuple):
    """What is learned from.

    target: pooled target activations of each rule, (sample, dim), for their size alone. pad: any token number.
    batch_size: texts per pass.
    """

    pairs: Sequence[Pair]
    control: Sequence[Rendered]
    target: Sequence[Tensor]
    held_pairs: Sequence[Pair] = ()
    held_control: Sequence[Rendered] = ()
    pad: int = 0
    batch_size: int = 32


def pairs_of(source: Sequence[Rendered], target: Sequence[Rendered]) -> list[Pair]:
    """Return pair after pair; those that part at their first token, before which nothing is said, from the second on.

    Raises TextsError for a pair whose tokens are the same.
    """
    found = []
    for one, other in zip(source, target, strict=True):
        same = zip(one.ids, other.ids, strict=False)
        first = next((place for place, (a, b) in enumerate(same) if a != b), min(len(one.ids), len(other.ids)))
        if first == max(len(one.ids), len(other.ids)):
            raise TextsError(
                f"a source text and its target are the same in all {first} tokens that are read: nothing is to be "
                "preferred; where texts were cut, raise max_tokens"
            )
        found.append(Pair(one, other, max(1, first)))
    return found


@final
class PairLearner(Learner):
    """Learns from what the model would say."""

    def __init__(
        self, work: Work, rules: Sequence[Rule], data: PairData, plan: Plan, objective: Preference, ranks: Ranks = ALONE
    ) -> None:
        """Open the model and ask the unsteered one about all pairs. `work.run` must return something with `logits`."""
        super().__init__(work, rules, data.target, plan, ranks)
        self.data, self.objective = data, objective
        try:
            pairs = [*data.pairs, *data.held_pairs]
            cut = [pairs[start : start + self._size] for start in range(0, len(pairs), self._size)]
            with torch.no_grad():
                mine = [self._likelihoods(some, steered=False)[0].cpu() for some in self.ranks.mine(cut)]
            self._before = dict(zip((pair.key for pair in pairs), torch.cat(self.ranks.joined(mine)), strict=True))
        except BaseException:
            self.close()
            raise

    def gradient(self, number: int = 0) -> Gradient:
        """Put the gradient of the loss of step `number`, from its pairs and control texts, into the leaves."""
        self.descent.optimiser.zero_grad(set_to_none=True)
        weight, count, seed = self.objective.control_weight, self.objective.pairs_per_step, self.objective.seed
        pairs = _turn(self.data.pairs, number, count, seed)
        control = _turn(self.data.control, number, count, seed) if weight > 0 else []
        term = moved = 0.0
        seen: list[list[Seen]] = []
        for share, some in self._preferred(pairs):
            share.backward()
            term += float(share.detach())
            seen.append([one._replace(value=one.value.detach()) for one in some])
        for share in self._kept(control):
            (weight * share).backward()
            moved += float(share.detach())
        term, moved = self.with_others([term, moved], gradients=True)
        return Gradient(term, moved, term + weight * moved, self.dead(self.ranks.joined(seen)))

    @torch.no_grad()
    def look(self) -> dict[str, float]:
        """Return the loss's terms on all held-out pairs and control texts."""
        term = sum(float(share) for share, _ in self._preferred(self.data.held_pairs))
        weight = self.objective.control_weight
        moved = sum(float(share) for share in self._kept(self.data.held_control)) if weight > 0 else 0.0
        term, moved = self.with_others([term, moved])
        found = {"held_term": term, "held_control": moved, "held_loss": term + weight * moved}
        return self.ranks.from_first(lambda: found)

    @property
    def _size(self) -> int:
        return max(1, self.data.batch_size // 2)

    def _preferred(self, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, list[Seen]]]:
        """Yield the share of each of this rank's micro-batches in the term; the pass is run when it is asked for."""
        for some in self.ranks.mine(_cut(pairs, self._size, self.ranks.count)):
            after, seen = self._likelihoods(some, steered=True)
            before = torch.stack([self._before[pair.key] for pair in some]).to(after)
            moved = after - before
            yield softplus(-self.objective.beta * (moved[:, 1] - moved[:, 0])).sum() / len(pairs), seen

    def _kept(self, control: Sequence[Rendered]) -> Iterator[Tensor]:
        """Yield the share of each of this rank's micro-batches in the control term."""
        total = sum(sum(row.asked) for row in control)
        for some in self.ranks.mine(_cut(control, self.data.batch_size, self.ranks.count)):
            batch = self._batch(some)
            with torch.no_grad():
                before = self.passes.outputs(batch, steered=False)[0].logits
            after = self.passes.outputs(batch)[0].logits
            mask = _placed(batch, [row.asked for row in some]).to(after.device)
            yield cheaply(_divergence, after[mask], before[mask]) / total

    def _likelihoods(self, pairs: Sequence[Pair], *, steered: bool) -> tuple[Float[Tensor, "pair 2"], list[Seen]]:
        """Return the log-likelihoods of source and target, of their judged tokens from `first` on."""
        rows = [row for pair in pairs for row in pair.rows]
        batch = self._batch(rows)
        given, seen = self.passes.outputs(batch, steered=steered)
        tokens = batch.tokens.to(given.logits.device)
        judged = _placed(batch, [row.judged for row in rows])[:, 1:]
        for place, row in enumerate(batch.rows):
            judged[place, : pairs[row // 2].first - 1] = False
        judged = judged.to(tokens.device)
        each = cheaply(_log_likelihood, given.logits[:, :-1][judged], tokens[:, 1:][judged])
        sums = each.new_zeros(len(rows)).index_add(0, judged.nonzero()[:, 0], each)
        back = torch.tensor(batch.rows, device=sums.device).argsort()
        return sums[back].view(-1, 2), seen

    def _batch(self, rows: Sequence[Rendered]) -> Batch:
        ids, counted = [row.ids for row in rows], [row.counted for row in rows]
        (batch,) = batches(ids, len(rows), pad=self.data.pad, side="right", counted=counted)
        return batch


def _placed(batch: Batch, flags: Sequence[Sequence[bool]]) -> Bool[Tensor, "row token"]:
    """Return the flags of each row's tokens where the batch has them."""
    found = torch.zeros_like(batch.mask)
    for place, row in enumerate(batch.rows):
        found[place, : len(flags[row])] = torch.tensor(flags[row])
    return found


def _log_likelihood(logits: Float[Tensor, "token vocabulary"], tokens: Tensor) -> Float[Tensor, " token"]:
    return -cross_entropy(_wide(logits), tokens, reduction="none")


def _divergence(after: Float[Tensor, "token vocabulary"], before: Float[Tensor, "token vocabulary"]) -> Tensor:
    p, q = _wide(before).log_softmax(-1), _wide(after).log_softmax(-1)
    return kl_div(q, p, reduction="sum", log_target=True)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _turn(items: Sequence[Foreign], number: int, count: int, seed: int) -> list[Foreign]:
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


def _cut(items: Sequence[Foreign], size: int, ranks: int) -> list[Sequence[Foreign]]:
    """Return the items in parts of at most `size`, small enough for every rank to get one."""
    size = max(1, min(size, -(-len(items) // ranks)))
    return [items[start : start + size] for start in range(0, len(items), size)]
