"""Preference: its value and gradients, what micro-batches and ranks leave alone, and `dsas.train` with pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from blocks import check_gradient

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.evaluation.divergence import divergence
from dsas.model.conversation import Content, content_of
from dsas.model.identity import ModelIdentity
from dsas.model.rendering import Rendered, rendered
from dsas.testing import check_steering, tiny_model, tiny_tokenizer
from dsas.testing.pipelines import tiny_pipeline
from dsas.training.learning import LearnedParts, learnable
from dsas.training.next_tokens import PairData, turn
from dsas.training.objectives.preference import PairLearner, pairs_of
from dsas.training.passes import Work
from dsas.training.plan import HeldOut, Optimiser, Plan
from dsas.training.sets import held_apart

SOURCE = [f"the door {n} is SHUT UP {n}" for n in range(10)]
TARGET = [f"the door {n} is open, thank you" for n in range(10)]
QUIET = dsas.Running(progress=False)
KINDS = ["logistic", "evidence", "of prompts"]
CONTROL = [f"a line about nothing {n}" for n in range(7)]


def answered(texts: list[str]) -> list[Content]:
    """Return texts as prompts with their completions, which begin at the third word."""
    parts = [(" ".join(text.split()[:2]), " " + " ".join(text.split()[2:])) for text in texts]
    return [content_of({"prompt": prompt, "completion": rest}, "a text") for prompt, rest in parts]


def learner_of(*, size: int = 32, kind: str = "logistic") -> PairLearner:
    torch.manual_seed(3)
    model, tokenizer = tiny_model("gpt2", layers=2).double(), tiny_tokenizer()  # its norms stay in float64
    rules = []
    for site in dsas.find_sites(model, "residual"):
        width = model.config.hidden_size
        line = dsas.Lineas(1 + 0.3 * torch.randn(width).double(), 0.3 * torch.randn(width).double())
        theta, bias = torch.randn(width).double(), torch.tensor(0.2).double()
        when: dsas.Regulator = dsas.Logistic(theta, bias)
        if kind != "logistic":
            when = dsas.Evidence(theta, bias, torch.tensor(0.1).double())
        if kind == "of prompts":
            when = dsas.Product([when, dsas.Schedule("prompt")])
        rules.append(learnable(dsas.Rule(site, line, when), torch.device("cpu"), LearnedParts(True, False)))
    made = answered if kind == "of prompts" else list
    rows = {name: rendered(tokenizer, made(texts)) for name, texts in (("s", SOURCE), ("t", TARGET), ("c", CONTROL))}
    pairs = pairs_of(rows["s"], rows["t"])
    data = PairData(
        pairs[:8], rows["c"][:5], [torch.randn(4, 32)] * len(rules), pairs[8:], rows["c"][5:], batch_size=size
    )
    work = Work(
        model,
        run=lambda batch: model(input_ids=batch.tokens, attention_mask=batch.mask.long(), use_cache=False),
        real=lambda batch: batch.mask,
        counted=lambda batch: batch.counted,
        pool=lambda t, _: t.mean(1),
        prompts=lambda batch: batch.prompts,
    )
    plan = Plan(12, Optimiser("adam", 0.05, 0.05), HeldOut(0.2, every=2))
    return PairLearner(work, rules, data, plan, dsas.Preference(control_weight=0.7, beta=0.5, pairs_per_step=8))


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_that_of_a_reference_that_reads_one_text_at_a_time(kind: str) -> None:
    learner = learner_of(kind=kind)
    found = learner.gradient()
    learner.close()
    model = learner._work.model
    steering = dsas.Steering(learner.rules, ModelIdentity.of(model))

    def logs(row: Rendered, *, steered: bool) -> np.ndarray:
        tokens = torch.tensor([row.ids])
        with torch.no_grad():
            if not steered:
                logits = model(input_ids=tokens).logits[0]
            else:
                with steering.apply(model, 1.0, record=False, prompt_tokens=row.prompt):
                    logits = model(input_ids=tokens).logits[0]
        x = logits.numpy()
        return x - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)) - x.max(-1, keepdims=True)

    def moved(row: Rendered) -> float:  # the whole text: what both begin with must drop out by itself
        places, after, before = np.arange(len(row.ids) - 1), logs(row, steered=True), logs(row, steered=False)
        return float((after - before)[places, row.ids[1:]].sum())

    terms = [np.log1p(np.exp(-0.5 * (moved(pair.target) - moved(pair.source)))) for pair in learner.data.pairs]
    assert found.term == pytest.approx(np.mean(terms), rel=1e-9)
    control = [(row, np.array(row.asked)) for row in learner.data.control]
    kept = [(logs(row, steered=False)[asked], logs(row, steered=True)[asked]) for row, asked in control]
    divergence = np.concatenate([(np.exp(p) * (p - q)).sum(-1) for p, q in kept])
    assert found.control == pytest.approx(divergence.mean(), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    learner = learner_of(kind=kind)
    check_gradient(learner, every=7)
    learner.close()


@pytest.mark.parametrize("size", [1, 4, 6])
def test_micro_batches_give_the_gradient_of_the_whole_step(size: int) -> None:
    whole, parts = learner_of(), learner_of(size=size)
    assert parts.gradient()[:2] == pytest.approx(whole.gradient()[:2], rel=1e-12)
    for name, value in whole.leaves.items():
        torch.testing.assert_close(parts.leaves[name].grad, value.grad, rtol=1e-9, atol=1e-13)
    assert parts.look() == pytest.approx(whole.look(), rel=1e-12)
    whole.close()
    parts.close()


def test_steps_take_all_texts_in_turn_in_an_order_that_the_number_of_the_step_decides() -> None:
    items = list(range(7))
    taken = [item for number in range(7) for item in turn(items, number, 3, seed=5)]
    assert [sorted(taken[start : start + 7]) for start in (0, 7, 14)] == [items] * 3
    assert taken[:7] != taken[7:14]
    assert turn(items, 4, 3, seed=5) == taken[12:15]
    assert sorted(turn(items, 0, 99, seed=5)) == items


def test_a_pair_is_told_apart_from_the_first_token_that_differs_and_that_has_one_before_it() -> None:
    def rows(*found: list[int]) -> list[Rendered]:
        return [Rendered(row, [True] * len(row)) for row in found]

    pairs = pairs_of(rows([1, 2, 3], [1, 2], [4, 5]), rows([1, 2, 4], [1, 2, 3], [6, 5]))
    assert [pair.first for pair in pairs] == [2, 2, 1]
    with pytest.raises(TextsError, match=r"the same in all 2 tokens .* raise max_tokens"):
        pairs_of(rows([1, 2]), rows([1, 2]))


def test_pairs_are_held_out_together_with_those_that_begin_alike() -> None:
    texts = {
        "source": [f"{start} {n} no" for n in range(5) for start in ("a", "b", "c", "d")],
        "target": [f"{start} {n} yes" for n in range(5) for start in ("a", "b", "c", "d")],
        "control": CONTROL,
    }
    for seed in range(5):
        found = held_apart(texts, HeldOut(0.25, seed=seed), paired=True)
        for part, count in (("", 15), ("held_", 5)):
            pairs = list(zip(found[f"{part}source"], found[f"{part}target"], strict=True))
            assert len(pairs) == count
            assert all(one[:3] == other[:3] for one, other in pairs)
        assert len({text[0] for text in found["held_source"]}) <= 2
        assert not {*found["source"]} & {*found["held_source"]}


def test_the_seed_decides_the_order_in_which_pairs_come() -> None:
    first, again, other = (
        train(dsas.Preference(seed=seed, pairs_per_step=3), steps=2, held_out=dsas.HeldOut(0.0)).digest()
        for seed in (0, 0, 1)
    )
    assert first == again != other


def train(objective: Any = "preference", model: Any = None, **options: Any) -> dsas.Steering:
    given = {"source": SOURCE, "target": TARGET, "control": CONTROL, "objective": objective, "steps": 8}
    model = tiny_model(layers=2) if model is None else model
    return dsas.train(model, tiny_tokenizer(), **{**given, "sites": "residual", "running": QUIET, **options})


def test_what_is_learned_prefers_held_out_targets_and_keeps_the_laws(tmp_path: Path) -> None:
    model = tiny_model(layers=2)
    options = {"optimiser": dsas.Optimiser("adam", 0.03, 0.03), "steps": 20}
    steering = train(dsas.Preference(regulator_form="relu", pairs_per_step=4), model, checkpoint=tmp_path, **options)
    check_steering(steering, model, tiny_tokenizer())
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[0]["held_term"] == pytest.approx(np.log(2), abs=1e-5)  # nothing is moved yet
    assert rows[-1]["held_term"] < 0.9 * rows[0]["held_term"]
    assert {type(rule.regulator).__name__ for rule in steering.rules} == {"Rectified"}
    said = steering.settings["training"]
    assert (said["beta"], said["pairs_per_step"], said["control_weight"]) == (0.1, 4, 3.0)


def test_the_control_weight_holds_what_is_said_of_control() -> None:
    def moved(weight: float) -> float:
        model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
        objective = dsas.Preference(control_weight=weight)
        steering = train(objective, model, steps=15, optimiser=dsas.Optimiser("adam", 0.03, 0.03))
        return divergence(model, tokenizer, CONTROL, lambda: steering.apply(model, 1.0)).mean

    assert moved(100.0) < 0.5 * moved(0.0)


def test_a_resumed_training_ends_in_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = dsas.Preference(pairs_per_step=3)
    whole = train(objective)
    gradient, taken = PairLearner.gradient, []

    def until_the_fourth(self: PairLearner, number: int = 0) -> Any:
        taken.append(number)
        if len(taken) == 4:
            raise KeyboardInterrupt
        return gradient(self, number)

    monkeypatch.setattr(PairLearner, "gradient", until_the_fourth)
    with pytest.warns(DsasWarning, match="interrupted after 3 steps"):
        train(objective, checkpoint=tmp_path)
    monkeypatch.undo()
    assert train(objective, checkpoint=tmp_path).digest() == whole.digest()


@pytest.mark.parametrize(
    "options", [{"reading": dsas.Reading(batch_size=3)}, {"running": QUIET._replace(checkpointing=True)}], ids=str
)
def test_micro_batches_and_checkpointing_change_memory_and_not_what_is_learned(options: Any) -> None:
    plain, other = (train(model=tiny_model("gpt2", layers=2).double(), **given) for given in ({}, options))
    for one, two in zip(plain.rules, other.rules, strict=True):
        torch.testing.assert_close(
            dict(two.transform.named_buffers()), dict(one.transform.named_buffers()), rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"target": TARGET[:8]}, TextsError, "as many source texts as target texts, got 10 and 8"),
        ({"target": [*TARGET[:9], SOURCE[9]]}, TextsError, r"source\[9\] and target\[9\] are the same text"),
        ({"control": ()}, TextsError, "control"),
    ],
)
def test_what_cannot_be_preferred_is_refused(options: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        train(**options)


def test_a_pipeline_says_nothing_that_could_be_preferred() -> None:
    pytest.importorskip("diffusers")
    with pytest.raises(OptionError, match="language model"):
        dsas.train(
            tiny_pipeline("sd"), source=SOURCE, target=TARGET, control=CONTROL, objective="preference", sites="norm"
        )


def test_vectors_that_were_fitted_are_learned_on_from_where_they_are() -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    sets = {"source": SOURCE, "control": CONTROL, "target": TARGET}
    fitted = 0.1 * dsas.fit(model, tokenizer, **sets, sites="residual", selection="all", progress=False)
    steering = train(model=model, start=fitted, steps=5)
    check_steering(steering, model, tokenizer)
    assert [rule.site for rule in steering.rules] == [rule.site for rule in fitted.rules]
    for old, new in zip(fitted.rules, steering.rules, strict=True):
        assert isinstance(new.transform, dsas.Addition)
        assert isinstance(old.transform, dsas.Addition)
        moved = (new.transform.vector - old.transform.vector).norm() / old.transform.vector.norm()
        assert 0 < moved < 2
    with pytest.raises(OptionError, match="sparsity=0"):
        train(dsas.Preference(sparsity=0.1), model, start=fitted)


def test_without_regulators_the_vectors_alone_are_learned() -> None:
    model, sets = tiny_model(layers=2), {"source": SOURCE, "control": CONTROL, "target": TARGET}
    given = {"sites": "residual", "regulator": "constant", "progress": False}
    fitted = 0.1 * dsas.fit(model, tiny_tokenizer(), **sets, **given)
    steering = train(model=model, start=fitted, steps=5)
    check_steering(steering, model, tiny_tokenizer())
    assert {type(rule.regulator) for rule in steering.rules} == {dsas.Constant}
    for old, new in zip(fitted.rules, steering.rules, strict=True):
        assert not torch.equal(new.transform.get_buffer("vector"), old.transform.get_buffer("vector"))


def test_what_acts_on_prompts_alone_is_learned_on_and_acts_on_prompts_alone() -> None:
    model, tokenizer, sets = tiny_model(layers=2), tiny_tokenizer(), (SOURCE, TARGET, CONTROL)
    source, target, control = (
        [{"prompt": " ".join(text.split()[:2]), "completion": " " + " ".join(text.split()[2:])} for text in some]
        for some in sets
    )
    given: Any = {"source": source, "target": target, "control": control}
    fitted = 0.1 * dsas.fit(model, tokenizer, **given, selection="all", progress=False)
    prompts = dsas.Schedule("prompt")
    options: Any = {"objective": "preference", "steps": 4, "running": QUIET, "held_out": HeldOut(share=0.0)}
    learned = dsas.train(model, tokenizer, **given, start=fitted.within(prompts), **options)
    check_steering(learned, model, tokenizer)
    for old, new in zip(fitted.rules, learned.rules, strict=True):
        assert isinstance(new.regulator, dsas.Product)
        first, second = new.regulator.factors
        assert isinstance(second, dsas.Schedule)
        assert second.part == "prompt"
        assert type(first) is type(old.regulator)
        assert not torch.equal(first.get_buffer("theta"), old.regulator.get_buffer("theta"))
    answers: Any = fitted.within(dsas.Schedule("generated"))
    texts = {"source": SOURCE, "target": TARGET, "control": CONTROL}
    with pytest.raises(OptionError, match="the regulator is 0 on every source token"):
        dsas.train(model, tokenizer, **texts, start=answers, **options)
    constant = 0.1 * dsas.fit(model, tokenizer, **given, regulator="constant", progress=False)
    alone = dsas.train(model, tokenizer, **given, start=constant.within(prompts), **options)
    assert isinstance(alone.rules[0].regulator, dsas.Product)
    assert [type(one) for one in alone.rules[0].regulator.factors] == [dsas.Constant, dsas.Schedule]
    cast = dsas.fit(model, tokenizer, **given, regulator="logistic*cast", selection="all", progress=False)
    with pytest.raises(OptionError, match=r"Cast at .* reads prompts, which training does not have"):
        dsas.train(model, tokenizer, **given, start=cast, **options)
