"""Preference: make a model prefer the target's texts to the source's, and keep its next tokens on control texts.

    d(x)     =  log p'(x) - log p(x)                      p' steered, p not; in nats, over the tokens that differ
    term     =  mean over pairs of  log(1 + exp(-beta (d(target) - d(source))))
    control  =  mean over tokens of control texts of KL(p || p')        loss = term + control_weight * control

Source text i and target text i are a pair, such as two continuations of one prompt. Their common beginning has the same
tokens in the same places, so it cancels in d(target) - d(source), and the prompt need not be marked. In conversations,
and in prompts with completions, the answers are judged, including the end-of-turn token, each given its own prompt;
control preserves the next tokens of its answers.

A step takes some pairs and some control texts: all in turn, in a new random order each round, decided by the seed and
the number of the step. The unsteered model reads all pairs once, and the control texts of every step anew, because
their distributions over the vocabulary would fill the memory. Micro-batches hold both texts of a pair; terms are sums
over pairs and over tokens, so that their gradients add up to that of the whole step.

Source: BiPO (arXiv 2406.00045), which learns one vector at one layer by the loss of DPO (arXiv 2305.18290). The
regulators, learning all sites at once and the control term are new here. Limitations: all pairs have the same weight;
only for language models.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, softplus

from dsas.errors import TextsError
from dsas.model.rendering import Rendered
from dsas.model.sites import Site
from dsas.runtime.rule import Rule
from dsas.training.learner import Learner
from dsas.training.learning import LEARNED_FORMS, LearnedForm, LearnedParts, fixed, regulated_rule
from dsas.training.next_tokens import PairData, PairsLearner, StepOptions, batch_of, cut, placed, wide
from dsas.training.objectives.base import Objective, RegulatorStart, TrainingTask
from dsas.training.passes import Seen, Work, cheaply
from dsas.training.plan import Plan
from dsas.training.ranks import ALONE, Ranks


@final
@dataclass(frozen=True, kw_only=True)
class Preference(Objective):
    """Makes target[i] likelier than source[i], such as two continuations of one prompt; for language models only.

    It can start from the identity, from `Lineas` transforms, or from transforms that add a vector, such as `0.1 *
    fitted`; with constant regulators everywhere, only the transforms are learned.

    beta: DPO's beta, > 0, in 1/nats; a larger one saturates earlier. pairs_per_step: pairs, and control texts, per
    step. control_weight: weight >= 0 of the divergence on control texts. regulator_form: form of the regulators, as in
    `E2E`. seed: seed of the order of pairs and control texts.
    """

    name: ClassVar[str] = "preference"
    paired: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = True

    beta: float = 0.1
    pairs_per_step: int = 16
    control_weight: float = 3.0
    regulator_form: LearnedForm = "sigmoid"
    seed: int = 0

    def __post_init__(self) -> None:
        known = self.regulator_form in LEARNED_FORMS and self.control_weight >= 0 and self.sparsity >= 0
        self.require(
            known and self.beta > 0 and self.pairs_per_step >= 1,
            f"regulator_form one of {tuple(LEARNED_FORMS)}, control_weight >= 0, sparsity >= 0, beta > 0 and "
            "pairs_per_step >= 1",
        )

    @property
    def needs_control(self) -> bool:
        """Always: the next tokens of control texts are preserved."""
        return True

    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the identity with a regulator of the form that is learned."""
        return regulated_rule(self.regulator_form, site, sets, scratch=start == "scratch")

    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Return that regulators are learned unless all are constant."""
        return LearnedParts(regulators=not all(fixed(rule.regulator) for rule in rules), vectors=True)

    def learner(self, task: TrainingTask) -> Learner:
        """Return the learner that compares likelihoods."""
        examples, rows = task.examples, {name: task.examples.rows(texts) for name, texts in task.texts.items()}
        pairs, held = (pairs_of(rows[f"{part}source"], rows[f"{part}target"]) for part in ("", "held_"))
        pad, size = examples.pad_token(), examples.batch_size
        data = PairData(pairs, rows["control"], task.target, held, rows["held_control"], pad, size)
        return PairLearner(task.work, task.rules, data, task.plan, self, task.ranks)

    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules as they are."""
        return list(rules)


class Pair(NamedTuple):
    """A source and a target as tokens; they differ from the place `first` on."""

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


def pairs_of(source: Sequence[Rendered], target: Sequence[Rendered]) -> list[Pair]:
    """Return the pairs; those that differ at their first token, which is not predicted, count from the second on.

    Raises TextsError for a pair whose tokens are the same.
    """
    found = []
    for one, other in zip(source, target, strict=True):
        same = zip(one.ids, other.ids, strict=False)
        first = next((place for place, (a, b) in enumerate(same) if a != b), min(len(one.ids), len(other.ids)))
        if first == max(len(one.ids), len(other.ids)):
            raise TextsError(
                f"a source text and its target are the same in all {first} tokens that are read: neither can be "
                "preferred; where texts were cut, raise max_tokens"
            )
        found.append(Pair(one, other, max(1, first)))
    return found


@final
class PairLearner(PairsLearner):
    """Learns from the model's log-likelihoods."""

    def __init__(
        self, work: Work, rules: Sequence[Rule], data: PairData, plan: Plan, objective: Preference, ranks: Ranks = ALONE
    ) -> None:
        """Open the model and read all pairs with the unsteered one."""
        per_step = StepOptions(objective.pairs_per_step, objective.control_weight, objective.seed)
        super().__init__(work, rules, data, plan, per_step, ranks)
        self._beta = objective.beta
        try:
            pairs = [*data.pairs, *data.held_pairs]
            parts = [pairs[start : start + self._size] for start in range(0, len(pairs), self._size)]
            with torch.no_grad():
                mine = [self._likelihoods(some, steered=False)[0].cpu() for some in self.ranks.local(parts)]
            self._before = dict(zip((pair.key for pair in pairs), torch.cat(self.ranks.gathered(mine)), strict=True))
        except BaseException:
            self.close()
            raise

    def terms(self, pairs: Sequence[Pair]) -> Iterator[tuple[Tensor, list[Seen]]]:
        """Yield the share of each micro-batch in the preference term."""
        for some in self.ranks.local(cut(pairs, self._size, self.ranks.count)):
            after, seen = self._likelihoods(some, steered=True)
            before = torch.stack([self._before[pair.key] for pair in some]).to(after)
            moved = after - before
            yield softplus(-self._beta * (moved[:, 1] - moved[:, 0])).sum() / len(pairs), seen

    @property
    def _size(self) -> int:
        return max(1, self.data.batch_size // 2)

    def _likelihoods(self, pairs: Sequence[Pair], *, steered: bool) -> tuple[Float[Tensor, "pair 2"], list[Seen]]:
        """Return the log-likelihoods of source and target, of their judged tokens from `first` on."""
        rows = [row for pair in pairs for row in pair.rows]
        batch = batch_of(rows, self.data.pad)
        given, seen = self.passes.outputs(batch, steered=steered)
        tokens = batch.tokens.to(given.logits.device)
        judged = placed(batch, [row.judged for row in rows])[:, 1:]
        for place, row in enumerate(batch.rows):
            judged[place, : pairs[row // 2].first - 1] = False
        judged = judged.to(tokens.device)
        each = cheaply(_log_likelihood, given.logits[:, :-1][judged], tokens[:, 1:][judged])
        sums = each.new_zeros(len(rows)).index_add(0, judged.nonzero()[:, 0], each)
        back = torch.tensor(batch.rows, device=sums.device).argsort()
        return sums[back].view(-1, 2), seen


def _log_likelihood(logits: Float[Tensor, "token vocabulary"], tokens: Tensor) -> Float[Tensor, " token"]:
    return -cross_entropy(wide(logits), tokens, reduction="none")
