"""Imitate: make a model answer as it would under an instruction, without the instruction.

    term     =  mean over tokens of answers of KL(p(. | instruction, question, answer so far) || p'(. | question, ...))
    control  =  mean over tokens of control texts of KL(p || p')        loss = term + control_weight * control

p' is the steered model, p the unsteered one. The source holds questions, and no text that shows a behaviour is needed:
before training the model answers each question itself, under the instruction, and both sides read these answers, one
with the instruction and one without. Control texts without an answer are questions, too: the model answers them without
instruction, and these answers are preserved.

An instruction that contains {question} is the user's turn; any other is a system message (`dsas.model.instruction`).
The result can be no better than the model under the instruction, so look at its answers first. Answers are sampled as
in `dsas.training.answering`, and a step takes some of them in turn.

Source: PSR (arXiv 2605.03907), of which only the idea is used: regulator and vector are learned to reproduce the
prompted model. Learning all sites at once, slopes as well as vectors, the control term and the units of the rates are
new here. Limitations: only language models with a chat template.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, final

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError, TextsError
from dsas.model.conversation import Content, has_answer
from dsas.model.examples import Given, check_texts
from dsas.model.instruction import instructed
from dsas.model.rendering import Rendered
from dsas.model.sites import Site
from dsas.model.token_batches import Batch
from dsas.runtime.rule import Rule
from dsas.training.answering import Answering
from dsas.training.learner import Learner
from dsas.training.learning import LEARNED_FORMS, LearnedForm, LearnedParts, fixed, regulated_rule
from dsas.training.next_tokens import PairData, PairsLearner, StepOptions, batch_of, cut, divergence
from dsas.training.objectives.base import AsksFirst, RegulatorStart, TrainingTask
from dsas.training.passes import Seen


@final
@dataclass(frozen=True, kw_only=True)
class Imitate(AsksFirst):
    """Makes the model answer as it does under an instruction; for language models with a chat template only.

    It can start from the same rules as `Preference`; without control texts regulators start at 1/2 everywhere.

    instruction: such as "Answer politely." or "{question} Answer politely.". new_tokens: most tokens per answer.
    pairs_per_step: answers, and control texts, per step. control_weight: weight >= 0 of the divergence on
    control texts. regulator_form: form of the regulators, as in `E2E`. seed: seed of the answers and of their order.
    """

    name: ClassVar[str] = "imitate"
    paired: ClassVar[bool] = True
    reads_logits: ClassVar[bool] = True

    instruction: str = ""
    new_tokens: int = 64
    pairs_per_step: int = 16
    control_weight: float = 1.0
    regulator_form: LearnedForm = "sigmoid"
    seed: int = 0

    def __post_init__(self) -> None:
        known = self.regulator_form in LEARNED_FORMS and self.control_weight >= 0 and self.sparsity >= 0
        self.require(
            known and self.new_tokens >= 1 and self.pairs_per_step >= 1,
            f"regulator_form one of {tuple(LEARNED_FORMS)}, control_weight >= 0, sparsity >= 0, new_tokens >= 1 and "
            "pairs_per_step >= 1",
        )

    @property
    def needs_control(self) -> bool:
        """Never: without control texts the instruction is imitated on every text."""
        return False

    def drawn(
        self, answering: Answering, source: Sequence[Given], control: Sequence[Given]
    ) -> dict[str, list[Content]]:
        """Return the answers to the source's questions: as source without the instruction, as target with it.

        Raises OptionError without an instruction, TextsError for an item that is not a question.
        """
        if not self.instruction.strip():
            raise OptionError('imitate needs an instruction, such as dsas.Imitate(instruction="Answer politely.")')
        asked = [answering.question(one, f"source[{n}]") for n, one in enumerate(check_texts("source", source))]
        told = [instructed(answering.tokenizer, one, self.instruction) for one in asked]
        answers = answering.answers(told, new_tokens=self.new_tokens, seed=self.seed)
        said = [number for number, answer in enumerate(answers) if answer.strip()]
        kept = check_texts("control", control) if control else []
        open_ones = [number for number, one in enumerate(kept) if not has_answer(one)]
        plain = [answering.question(kept[number], f"control[{number}]") for number in open_ones]
        own = answering.answers(plain, new_tokens=self.new_tokens, seed=self.seed) if plain else []
        answered = {n: one.answered(text) for n, one, text in zip(open_ones, plain, own, strict=True) if text.strip()}
        return {
            "source": [asked[number].answered(answers[number]) for number in said],
            "target": [told[number].answered(answers[number]) for number in said],
            "control": [answered.get(n, one) for n, one in enumerate(kept) if n in answered or n not in open_ones],
        }

    def first_rule(self, site: Site, sets: Mapping[str, Tensor], start: RegulatorStart) -> Rule:
        """Return the identity with a regulator of the form that is learned."""
        return regulated_rule(self.regulator_form, site, sets, scratch=start == "scratch" or "control" not in sets)

    def learned(self, rules: Sequence[Rule]) -> LearnedParts:
        """Return that regulators are learned unless all are constant."""
        return LearnedParts(regulators=not all(fixed(rule.regulator) for rule in rules), vectors=True)

    def learner(self, task: TrainingTask) -> Learner:
        """Return the learner that compares next-token distributions."""
        examples, rows = task.examples, {name: task.examples.rows(texts) for name, texts in task.texts.items()}
        pairs, held = (told_pairs(rows[f"{part}source"], rows[f"{part}target"]) for part in ("", "held_"))
        pad, size = examples.pad_token(), examples.batch_size
        data = PairData(pairs, rows["control"], task.target, held, rows["held_control"], pad, size)
        per_step = StepOptions(self.pairs_per_step, self.control_weight, self.seed)
        return ImitationLearner(task.work, task.rules, data, task.plan, per_step, task.ranks)

    def finish(self, rules: Sequence[Rule], sets: Mapping[str, Mapping[Site, Tensor]]) -> list[Rule]:
        """Return the learned rules as they are."""
        return list(rules)


class TellingPair(NamedTuple):
    """One answer as tokens, without and with the instruction, and the tokens after which the next one matters."""

    plain: Rendered
    told: Rendered
    plain_places: list[int]
    told_places: list[int]


def told_pairs(plain: Sequence[Rendered], told: Sequence[Rendered]) -> list[TellingPair]:
    """Return the pairs, as far as both are read. Raises TextsError if the instruction changes an answer's tokens."""
    found = []
    for one, other in zip(plain, told, strict=True):
        places = [[n for n, asked in enumerate(row.asked) if asked] for row in (one, other)]
        most = min(map(len, places))
        places = [of[:most] for of in places]
        said = [[row.ids[place + 1] for place in of] for row, of in zip((one, other), places, strict=True)]
        if not most or said[0] != said[1]:
            raise TextsError(
                "the chat template renders an answer differently under the instruction, so the two cannot be "
                "compared token by token; put {question} into the instruction, or raise max_tokens"
            )
        found.append(TellingPair(one, other, *places))
    return found


@final
class ImitationLearner(PairsLearner):
    """Learns from the next tokens of the model under the instruction."""

    def terms(self, pairs: Sequence[TellingPair]) -> Iterator[tuple[Tensor, list[Seen]]]:
        """Yield the share of each micro-batch in the divergence from the instructed model."""
        total = sum(len(pair.told_places) for pair in pairs)
        for some in self.ranks.local(cut(pairs, self.data.batch_size, self.ranks.count)):
            told = batch_of([pair.told for pair in some], self.data.pad)
            with torch.no_grad():
                given = self.passes.outputs(told, steered=False)[0].logits
            before = _after(told, given, [pair.told_places for pair in some])
            plain = batch_of([pair.plain for pair in some], self.data.pad)
            given, seen = self.passes.outputs(plain)
            after = _after(plain, given.logits, [pair.plain_places for pair in some])
            yield divergence(after, before) / total, seen


def _after(
    batch: Batch, logits: Float[Tensor, "row token vocabulary"], places: Sequence[Sequence[int]]
) -> Float[Tensor, "place vocabulary"]:
    """Return the logits after these places of each text, in the order of texts, whatever the order of the batch."""
    where = {text: row for row, text in enumerate(batch.rows)}
    rows = [where[text] for text, own in enumerate(places) for _ in own]
    columns = [place for own in places for place in own]
    return logits[torch.tensor(rows, device=logits.device), torch.tensor(columns, device=logits.device)]
