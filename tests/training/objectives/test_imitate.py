"""Imitate: its value and gradients, the answers that it draws, and `dsas.train` with nothing but an instruction."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import check_gradient

import dsas
import dsas.evaluation.generations as generations
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.conversation import Conversation
from dsas.model.identity import ModelIdentity
from dsas.model.rendering import Rendered
from dsas.testing import check_steering, tiny_model, tiny_tokenizer
from dsas.testing.pipelines import tiny_pipeline
from dsas.training.answering import Answering
from dsas.training.learning import LearnedParts, learnable
from dsas.training.next_tokens import PairData, StepOptions
from dsas.training.objectives.imitate import ImitationLearner, told_pairs
from dsas.training.passes import Work
from dsas.training.plan import HeldOut, Optimiser, Plan

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = dsas.Chat(arguments={"chat_template": TEMPLATE})
QUIET = dsas.Running(progress=False)
QUESTIONS = [f"what is the door {n} for" for n in range(8)]
CONTROL = [f"who is there {n}" for n in range(6)]


def answer(before: list[int], said: list[int]) -> Rendered:
    return Rendered([*before, *said], [False] * len(before) + [True] * len(said), None, answers=True)


def learner_of(*, size: int = 32, evidence: bool = False) -> ImitationLearner:
    torch.manual_seed(3)
    model = tiny_model("gpt2", layers=2).double()  # its norms stay in float64
    rules = []
    for site in dsas.find_sites(model, "residual"):
        width = model.config.hidden_size
        line = dsas.Lineas(1 + 0.3 * torch.randn(width).double(), 0.3 * torch.randn(width).double())
        theta, bias = torch.randn(width).double(), torch.tensor(0.2).double()
        when = dsas.Evidence(theta, bias, torch.tensor(0.1).double()) if evidence else dsas.Logistic(theta, bias)
        rules.append(learnable(dsas.Rule(site, line, when), torch.device("cpu"), LearnedParts(True, False)))
    said = [[20 + n, 30 + n, 40][: 1 + n % 3] for n in range(7)]  # so that batches are sorted, and otherwise when told
    plain = [answer([3, 4 + n], said[n]) for n in range(7)]
    told = [answer([9] * (7 - n) + [3, 4 + n], said[n]) for n in range(7)]
    control = [answer([5, 6], [7 + n, 8]) for n in range(5)]
    pairs = told_pairs(plain, told)
    targets = [torch.randn(4, 32)] * len(rules)
    data = PairData(pairs[:5], control[:3], targets, pairs[5:], control[3:], batch_size=size)
    work = Work(
        model,
        run=lambda batch: model(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False),
        real=lambda batch: batch.mask,
        counted=lambda batch: batch.counted,
        pool=lambda t, _: t.mean(1),
    )
    plan = Plan(12, Optimiser("adam", 0.05, 0.05), HeldOut(0.2, every=2))
    return ImitationLearner(work, rules, data, plan, StepOptions(5, 0.7, 0))


@pytest.mark.parametrize("evidence", [False, True])
def test_the_value_is_that_of_a_reference_that_reads_one_answer_at_a_time(evidence: bool) -> None:
    learner = learner_of(evidence=evidence)
    found = learner.gradient()
    learner.close()
    model = learner._work.model
    steering = dsas.Steering(learner.rules, ModelIdentity.of(model))

    def logs(row: Rendered, *, steered: bool) -> np.ndarray:
        """Return log-probabilities (token of the answer, vocabulary)."""
        tokens, first = torch.tensor([row.ids]), row.counted.index(True)
        with torch.no_grad(), steering.apply(model, 1.0 if steered else 0.0, record=False):
            x = model(input_ids=tokens).logits[0, first - 1 : -1].numpy()
        return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)

    def mean(pairs: list[tuple[np.ndarray, np.ndarray]]) -> float:
        return float(np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in pairs]).mean())

    term = mean([(logs(one.told, steered=False), logs(one.plain, steered=True)) for one in learner.data.pairs])
    control = mean([(logs(row, steered=False), logs(row, steered=True)) for row in learner.data.control])
    assert found.term == pytest.approx(term, rel=1e-9)
    assert found.control == pytest.approx(control, rel=1e-9)
    assert found.loss == pytest.approx(term + 0.7 * control, rel=1e-9)


@pytest.mark.parametrize("evidence", [False, True])
def test_gradients_are_those_of_finite_differences(evidence: bool) -> None:
    learner = learner_of(evidence=evidence)
    check_gradient(learner, every=7)
    learner.close()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_step(size: int) -> None:
    whole, parts = learner_of(), learner_of(size=size)
    assert parts.gradient()[:2] == pytest.approx(whole.gradient()[:2], rel=1e-12)
    for name, value in whole.leaves.items():
        torch.testing.assert_close(parts.leaves[name].grad, value.grad, rtol=1e-9, atol=1e-13)
    assert parts.look() == pytest.approx(whole.look(), rel=1e-12)
    whole.close()
    parts.close()


def test_an_answer_is_compared_as_far_as_both_sides_read_it_and_must_be_the_same_tokens() -> None:
    (pair,) = told_pairs([answer([1], [5, 6, 7])], [answer([1, 2, 3], [5, 6])])
    assert (pair.plain_places, pair.told_places) == ([0, 1], [2, 3])
    with pytest.raises(TextsError, match=r"renders an answer differently .* put {question} into the instruction"):
        told_pairs([answer([1], [5, 6])], [answer([1, 2], [5, 7])])


def train(objective: Any = None, model: Any = None, **options: Any) -> dsas.Steering:
    reading = dsas.Reading(batch_size=3, chat=CHAT)
    given = {"source": QUESTIONS, "control": CONTROL, "steps": 8, "sites": "residual", "running": QUIET}
    objective = objective or dsas.Imitate(instruction="Be kind.", new_tokens=6)
    model = tiny_model(layers=2) if model is None else model
    return dsas.train(model, tiny_tokenizer(), objective=objective, reading=reading, **{**given, **options})


def answering_of(model: Any) -> Answering:
    return Answering(model, tiny_tokenizer(), "", CHAT, None, 3, progress=False)


def contents(talks: Any) -> list[list[str]]:
    return [[message.content for message in one.messages] for one in talks]


def test_the_model_answers_when_told_and_both_sides_read_these_answers_without_and_with_the_instruction() -> None:
    answering = answering_of(tiny_model(layers=2))
    found = dsas.Imitate(instruction="Be kind.", new_tokens=6).drawn(answering, QUESTIONS, CONTROL)
    asked = [[{"role": "user", "content": one}] for one in (*QUESTIONS, *CONTROL)]
    told = [Conversation.of([{"role": "system", "content": "Be kind."}, *one], CHAT) for one in asked[: len(QUESTIONS)]]
    plain = [Conversation.of(one, CHAT) for one in asked[len(QUESTIONS) :]]
    answers, own = (answering.answers(one, new_tokens=6, seed=0) for one in (told, plain))
    both = [(question, said) for question, said in zip(QUESTIONS, answers, strict=True) if said.strip()]
    assert len({said for _, said in both}) > 1
    assert contents(found["source"]) == [list(one) for one in both]
    assert contents(found["target"]) == [["Be kind.", *one] for one in both]
    assert contents(found["control"]) == [list(one) for one in zip(CONTROL, own, strict=True) if one[1].strip()]


def test_questions_that_have_an_answer_lose_it_and_control_keeps_its_own() -> None:
    old = {"role": "assistant", "content": "old"}
    talks = [Conversation.of([{"role": "user", "content": one}, old]) for one in QUESTIONS]
    objective = dsas.Imitate(instruction="{question} Be kind.", new_tokens=6)
    found = objective.drawn(answering_of(tiny_model(layers=2)), talks, talks)
    assert found["control"] == talks
    for plain, told in zip(contents(found["source"]), contents(found["target"]), strict=True):
        assert told == [f"{plain[0]} Be kind.", plain[1]]
        assert plain[1] != "old"


def test_only_the_rules_are_learned_and_what_is_learned_imitates_on_held_out_questions(tmp_path: Path) -> None:
    model = tiny_model(layers=2)
    before = {name: value.clone() for name, value in model.named_parameters()}
    flags = [value.requires_grad for value in model.parameters()]
    steering = train(model=model, checkpoint=tmp_path, steps=20, optimiser=dsas.Optimiser("adam", 0.03, 0.03))
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert [value.requires_grad for value in model.parameters()] == flags
    assert all(value.grad is None for value in model.parameters())
    check_steering(steering, model, tiny_tokenizer())
    rows = np.genfromtxt(tmp_path / "log.csv", delimiter=",", names=True)
    assert rows["held_loss"][20] < 0.95 * rows["held_loss"][0]
    said = steering.settings["training"]
    assert (said["instruction"], said["new_tokens"], said["control_weight"]) == ("Be kind.", 6, 1.0)
    assert {type(rule.regulator) for rule in steering.rules} == {dsas.Logistic}


def test_without_questions_everyday_ones_are_asked_and_without_control_regulators_start_at_a_half() -> None:
    steering = train(source=(), control=(), steps=1, held_out=dsas.HeldOut(0.0))
    assert steering.settings["texts"]["source"] >= 190  # but for empty answers
    assert steering.settings["texts"]["control"] == 0


def test_a_resumed_training_draws_no_answer_again_and_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = dsas.Imitate(instruction="Be kind.", new_tokens=6, pairs_per_step=3)
    whole = train(objective)
    gradient, taken = ImitationLearner.gradient, []

    def until_the_fourth(self: ImitationLearner, number: int = 0) -> Any:
        taken.append(number)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return gradient(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(ImitationLearner, "gradient", until_the_fourth)
        with pytest.warns(DsasWarning, match="interrupted after 3 steps"):
            train(objective, checkpoint=tmp_path)

    def draws(*_: Any, **__: Any) -> Any:
        raise AssertionError("answers were drawn again")

    monkeypatch.setattr(generations, "sample_continuations", draws)
    assert train(objective, checkpoint=tmp_path).digest() == whole.digest()


@pytest.mark.parametrize(
    ("objective", "options", "said"),
    [
        (dsas.Imitate(), {}, "imitate needs an instruction, such as"),
        (None, {"target": QUESTIONS}, "imitate draws its target from the model itself: remove target="),
        (None, {"source": QUESTIONS[:3]}, "source must hold at least 4 texts, got 3"),
        (
            None,
            {"source": [{"prompt": q, "completion": "yes"} for q in QUESTIONS]},
            r"source\[0\]: expected a question, as a text or a conversation",
        ),
        (None, {"reading": dsas.Reading()}, "no chat template, so it cannot be instructed"),
    ],
)
def test_what_cannot_be_imitated_is_refused(objective: Any, options: Any, said: str) -> None:
    with pytest.raises((OptionError, TextsError), match=said):
        train(objective, **options) if "reading" not in options else dsas.train(
            tiny_model(layers=2), tiny_tokenizer(), source=QUESTIONS, running=QUIET,
            objective=dsas.Imitate(instruction="Be kind."),
        )  # fmt: skip


def test_a_pipeline_cannot_be_told_anything() -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(OptionError, match="language model"):
        dsas.train(tiny_pipeline("sd"), source=QUESTIONS, objective=dsas.Imitate(instruction="Be kind."), sites="norm")
