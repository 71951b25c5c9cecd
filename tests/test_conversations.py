"""Conversations through the whole library: answers are fitted, trained and measured on, given their prompts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import random_steering, templated
from torch import Tensor

import dsas
from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.evaluation.divergence import divergence
from dsas.evaluation.firing import fires_on
from dsas.evaluation.loss_curve import Yardstick
from dsas.evaluation.perplexity import perplexity
from dsas.fitting.text_checks import inspect_texts
from dsas.methods.linear_boundary import Boundary
from dsas.methods.tuned_boundary import TokenScores, Tuning
from dsas.model.identity import ModelIdentity
from dsas.model.subject import subject_of
from dsas.testing import tiny_model
from dsas.testing.models import WIDTH
from dsas.testing.pipelines import tiny_pipeline
from dsas.training.learning import LearnedParts, learnable
from dsas.training.next_tokens import PairData
from dsas.training.objectives.preference import PairLearner, pairs_of
from dsas.training.passes import Passes, Work
from dsas.training.plan import Plan

CHAT = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SITE = dsas.Site("model.layers.1")
QUIET = {"progress": False}


@pytest.fixture
def model() -> Any:
    return tiny_model("llama", vocab_size=300)


@pytest.fixture
def tokenizer() -> Any:
    return templated(CHAT, specials=("<s>", "</s>"), bos="<s>")


def talk(question: str, answer: str) -> list[Any]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def talks(word: str, count: int = 6) -> list[Any]:
    return [talk(f"What of {number}?", f"{word} {number}") for number in range(count)]


def sets() -> dict[str, Any]:
    return {"source": talks("AWFUL"), "control": talks("all fine"), "target": talks("very well")}


def hidden(model: Any, ids: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]


def parts_of(tokenizer: Any, messages: Any) -> tuple[list[int], list[int]]:
    """Return the tokens of the prompt, ready for the answer, and of the answer without what ends it."""
    prompt = tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=False)
    return prompt, tokenizer(messages[-1]["content"], add_special_tokens=False)["input_ids"]


def fitted(model: Any, tokenizer: Any, given: Any = None, **options: Any) -> dsas.Steering:
    plain = {"sites": SITE, "selection": "all", "regulator": "constant", **QUIET, **options}
    return dsas.fit(model, tokenizer, **(given or sets()), **plain)


@pytest.mark.parametrize("tokens", ["answer", "last", "last-instruction", "all"])
def test_the_vector_is_the_difference_of_the_means_of_the_tokens_that_were_asked_for(
    model: Any, tokenizer: Any, tokens: Any
) -> None:
    given = {
        name: [talk(f"{name} {n}?", one[-1]["content"]) for n, one in enumerate(own)] for name, own in sets().items()
    }
    steering = fitted(model, tokenizer, given, reading=dsas.Reading(tokens, skip_sinks=False))

    def vector(messages: Any) -> Tensor:
        prompt, answer = parts_of(tokenizer, messages)
        t = hidden(model, [*prompt, *answer, tokenizer.eos_token_id])
        first, end = len(prompt), len(prompt) + len(answer)
        where = {"answer": slice(first, end), "last": slice(end - 1, end), "all": slice(None)}
        return t[where.get(tokens, slice(first - 1, first))].mean(0)

    means = {name: torch.stack(list(map(vector, own))).mean(0) for name, own in given.items()}
    torch.testing.assert_close(steering.rules[0].transform.vector, means["target"] - means["source"])
    assert float(steering.rules[0].transform.vector.abs().max()) > 1e-3


def test_answers_are_what_counts_unless_told_otherwise(model: Any, tokenizer: Any) -> None:
    answers, auto = (fitted(model, tokenizer, reading=reading) for reading in (dsas.Reading("answer"), None))
    assert auto.digest() == answers.digest()
    assert auto.settings["examples"] == "conversation"


@pytest.mark.parametrize("incremental", [False, True])
def test_every_way_of_fitting_reads_the_same_tokens(model: Any, tokenizer: Any, incremental: bool) -> None:
    one_site = {"reading": dsas.Reading(incremental=incremental, batch_size=2)}
    assert torch.allclose(
        fitted(model, tokenizer, **one_site).rules[0].transform.vector,
        fitted(model, tokenizer).rules[0].transform.vector,
    )


def test_a_rendered_text_is_read_like_its_conversation_and_never_with_a_second_bos(model: Any, tokenizer: Any) -> None:
    texts = {
        name: [tokenizer.apply_chat_template(one, tokenize=False) for one in given] for name, given in sets().items()
    }
    seen: list[list[int]] = []
    watch = model.register_forward_pre_hook(
        lambda _m, _a, inputs: seen.extend(inputs["input_ids"].tolist()), with_kwargs=True
    )
    with pytest.warns(DsasWarning, match="look as if a chat template had rendered them"):
        from_texts = fitted(model, tokenizer, texts)
    watch.remove()
    assert {row.count(tokenizer.bos_token_id) for row in seen} == {1}
    assert from_texts.digest() == fitted(model, tokenizer, reading=dsas.Reading("all")).digest()


def test_how_conversations_were_read_is_stored_and_shown_and_changes_what_is_fitted(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    brief = dsas.Chat(system="Be brief.", arguments={"enable_thinking": False})
    steering = fitted(model, tokenizer, reading=dsas.Reading(chat=brief))
    steering.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert again.settings["reading"]["chat"] == {
        "system": "Be brief.",
        "arguments": {"enable_thinking": False},
        "parts": ["text", "thinking", "tool-calls"],
    }
    assert steering.digest() != fitted(model, tokenizer).digest()
    own = {
        name: [[{"role": "system", "content": "Be brief."}, *one] for one in given] for name, given in sets().items()
    }
    assert steering.digest() == fitted(model, tokenizer, own).digest()


def test_pairs_are_target_and_source(model: Any, tokenizer: Any) -> None:
    pairs = [
        {"prompt": good[:1], "chosen": good[1:], "rejected": bad[1:]}
        for good, bad in zip(sets()["target"], sets()["source"], strict=True)
    ]
    given = {"source": pairs, "control": sets()["control"]}
    assert fitted(model, tokenizer, given).digest() == fitted(model, tokenizer).digest()


def test_spans_in_answers_label_their_tokens_and_the_prompt_is_no_example_of_the_other_kind(
    model: Any, tokenizer: Any
) -> None:
    examples = subject_of(model, tokenizer).examples(dsas.Reading(skip_sinks=False))
    contents = [dsas.Conversation.of(one) for one in talks("AWFUL")]
    found = examples.labelled_tokens(contents, [[(1, 0, 5)]] * 6, [SITE], lambda: None)
    assert found.shown.tolist() == [*[True] * 5, False, False] * 6  # "AWFUL n"
    prompt, answer = parts_of(tokenizer, talks("AWFUL")[0])
    torch.testing.assert_close(found.vectors[SITE][found.texts == 0], hidden(model, [*prompt, *answer])[len(prompt) :])
    marked = [dsas.Example(one, [(1, 0, 5)]) for one in talks("AWFUL")]
    steering = fitted(model, tokenizer, {**sets(), "source": marked}, regulator="logistic")
    assert steering.settings["labels"] == "tokens"


def test_evidence_adds_up_over_the_prompt_and_is_tuned_by_the_answer() -> None:
    """The prompt's scores move the running mean, and neither the cut nor the values hold its tokens."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=9) for _ in range(40)]
    counted = [np.arange(9) >= 6] * 40
    tuning, line = Tuning(memory=1.0), Boundary(np.ones(2), 0.0)
    found = tuning.of(line, TokenScores(rows[:20], rows[20:], (counted[:20], counted[20:])))
    assert [len(own) for own in found.values.control] == [3] * 20
    assert np.concatenate(found.values.control).mean() == pytest.approx(tuning.false_positives)
    centre = np.concatenate([row[6:] for row in rows[20:]]).mean()
    so_far = np.array([(row - centre).cumsum()[6:] / (np.arange(7, 10) + tuning.prior) for row in rows[20:]])
    scale = tuning.sharpness / so_far.std()
    np.testing.assert_allclose(found.boundary.theta, scale * line.theta)
    np.testing.assert_allclose(found.values.control, 1 / (1 + np.exp(found.cut - scale * so_far)))


def test_the_default_regulator_is_tuned_by_as_many_tokens_as_the_answers_have(model: Any, tokenizer: Any) -> None:
    held = fitted(model, tokenizer, regulator="auto").settings["held_out_tokens"]
    assert held["tokens"] == [sum(len(f"{word} {n}") for n in range(6)) for word in ("AWFUL", "all fine")]


def answer_losses(model: Any, tokenizer: Any, messages: Any) -> np.ndarray:
    """Return minus the log-probability of each token of an answer, and of its end, in float64."""
    prompt, answer = parts_of(tokenizer, messages)
    row = [*prompt, *answer, tokenizer.eos_token_id]
    with torch.no_grad():
        logs = model(torch.tensor([row])).logits[0].double().log_softmax(-1)
    return -logs[range(len(prompt) - 1, len(row) - 1), row[len(prompt) :]].numpy()


def test_perplexity_is_that_of_answers_given_their_prompts(model: Any, tokenizer: Any) -> None:
    found = perplexity(model, tokenizer, talks("AWFUL"), batch_size=4)
    losses = [answer_losses(model, tokenizer, one) for one in talks("AWFUL")]
    np.testing.assert_allclose(found.losses, [own.mean() for own in losses], rtol=1e-5)
    assert found.tokens.tolist() == list(map(len, losses))
    short = perplexity(model, tokenizer, talks("AWFUL"), max_tokens=2)
    np.testing.assert_allclose(short.losses, [own[:2].mean() for own in losses], rtol=1e-5)


def test_divergence_and_selectivity_are_of_the_same_tokens(model: Any, tokenizer: Any) -> None:
    steering, (first, *_) = random_steering(model), talks("AWFUL")
    prompt, answer = parts_of(tokenizer, first)
    asked = slice(len(prompt) - 1, len(prompt) + len(answer))

    def logs() -> Tensor:
        with torch.no_grad():
            return model(torch.tensor([[*prompt, *answer]])).logits[0, asked].double().log_softmax(-1)

    before = logs()
    with steering.apply(model, 0.3):
        after, lost = logs(), answer_losses(model, tokenizer, first)
    nats = (before.exp() * (before - after)).sum(-1).mean()
    found = divergence(model, tokenizer, talks("AWFUL"), lambda: steering.apply(model, 0.3, record=False))
    assert found.per_text[0] == pytest.approx(float(nats), rel=1e-4)
    yardstick = Yardstick(model, tokenizer, source=talks("AWFUL"), control={"fine": talks("all fine")})
    losses = yardstick.losses(steering.apply(model, 0.3, record=False))
    assert losses.source[0] == pytest.approx((lost - answer_losses(model, tokenizer, first)).mean(), rel=1e-3)


def test_regulators_are_read_at_the_answers_tokens(model: Any, tokenizer: Any) -> None:
    steering = random_steering(model)
    report = fires_on(model, tokenizer, steering, {"rude": talks("AWFUL"), "fine": ["plain", "texts"]}, progress=False)
    assert report.kinds[0].tokens == sum(len(f"AWFUL {n}") for n in range(6))
    prompt, answer = parts_of(tokenizer, talks("AWFUL")[0])
    alone = fires_on(model, tokenizer, steering, {"one": talks("AWFUL", 1)}, progress=False)
    with steering.apply(model, 1.0) as applied, torch.no_grad():
        model(torch.tensor([[*prompt, *answer]]))
    trace = applied.trace()
    # the transform moves the row in `trace` and nothing in the report, so that only the first site is compared
    assert alone.by_site["one"][0] == pytest.approx(float(trace.strengths[0, 0, len(prompt) :].mean()), rel=1e-5)


def test_preference_judges_each_answer_given_its_own_prompt(model: Any, tokenizer: Any) -> None:
    examples = subject_of(model, tokenizer).examples(training=True)
    rows = [examples.rows([dsas.Conversation.of(talk(*one))]) for one in (("Oh?", "BAD"), ("Why then?", "good"))]
    (pair,) = pairs_of(*rows)
    judged = [
        tokenizer.decode([token for token, flag in zip(row.ids, row.judged, strict=True) if flag]) for row in pair.rows
    ]
    assert judged == ["BAD</s>", "good</s>"]


def test_preference_moves_answers_and_keeps_what_was_said_of_controls_answers(model: Any, tokenizer: Any) -> None:
    examples = subject_of(model, tokenizer).examples(training=True)
    rows = {name: examples.rows(list(map(dsas.Conversation.of, given))) for name, given in sets().items()}
    (site,) = dsas.find_sites(model, SITE)
    line, when = (
        dsas.Lineas(torch.ones(WIDTH), torch.full((WIDTH,), 0.2)),
        dsas.Logistic(torch.ones(WIDTH), torch.zeros(())),
    )
    rule = learnable(dsas.Rule(site, line, when), torch.device("cpu"), LearnedParts(True, False))
    work = Work(model, examples.run, examples.real, examples.counted, examples.pool)
    data = PairData(pairs_of(rows["source"], rows["target"]), rows["control"], [torch.randn(4, WIDTH)])
    learner = PairLearner(work, [rule], data, Plan(1), dsas.Preference(beta=0.5))
    found = learner.gradient()
    learner.close()
    steering = dsas.Steering(learner.rules, ModelIdentity.of(model))

    def moved(given: list[Any]) -> np.ndarray:
        before = np.array([answer_losses(model, tokenizer, one).sum() for one in given])
        with steering.apply(model, 1.0, record=False):
            return before - np.array([answer_losses(model, tokenizer, one).sum() for one in given])

    terms = np.log1p(np.exp(-0.5 * (moved(sets()["target"]) - moved(sets()["source"]))))
    assert found.term == pytest.approx(terms.mean(), rel=1e-4)
    kept = divergence(model, tokenizer, sets()["control"], lambda: steering.apply(model, 1.0, record=False)).per_text
    assert found.control == pytest.approx(kept.mean(), rel=1e-4)  # all answers are of one length


def test_training_reads_the_activations_and_the_strengths_of_the_answers_tokens(model: Any, tokenizer: Any) -> None:
    examples = subject_of(model, tokenizer).examples(training=True)
    (batch,) = examples.batches([dsas.Conversation.of(one) for one in talks("AWFUL")], range(6), 6)
    steering = random_steering(model, SITE)
    work = Work(model, examples.run, examples.real, examples.counted, examples.pool)
    with torch.no_grad(), Passes(work, steering.rules) as passes:
        (seen,) = passes.tokens(batch)
    assert len(seen.value) == sum(len(f"AWFUL {n}") for n in range(6))
    with steering.apply(model, 1.0) as applied, torch.no_grad():
        examples.run(batch)
    values = applied.trace().strengths[0]
    means = torch.stack([row[counts].mean() for row, counts in zip(values, batch.counted, strict=True)])
    torch.testing.assert_close(seen.strength, means)


@pytest.mark.parametrize("objective", ["lineas", "e2e-dsas", "preference"])
def test_every_objective_learns_from_conversations(model: Any, tokenizer: Any, objective: str) -> None:
    steering = dsas.train(
        model, tokenizer, **sets(), objective=objective, steps=2, sites=SITE, running=dsas.Running(progress=False)
    )
    assert steering.settings["examples"] == "conversation"
    assert steering.settings["reading"]["tokens"] == "auto"


def test_a_relative_is_asked_about_answers(model: Any, tokenizer: Any) -> None:
    steering = fitted(model, tokenizer, regulator="logistic", sites="residual")
    found = steering.port(model, tokenizer, source=talks("AWFUL"), control=talks("all fine"))
    assert found.verdict == "fits"


def test_sets_of_conversations_are_inspected_by_what_counts_of_them() -> None:
    asked = [f"Tell me about number {n} at length, and about everything that comes to mind" for n in range(8)]
    rude = [talk(question, f"{word} you fool") for question, word in zip(asked, "abcdefgh", strict=True)]
    kind = [talk(question, f"{word}, of course, gladly") for question, word in zip(asked, "abcdefgh", strict=True)]
    assert not [one for one in inspect_texts(rude, kind).findings if one.check in ("overlap", "duplicates")]
    assert inspect_texts(rude, kind, tokens="last-instruction").findings[0].check == "overlap"


def test_an_answer_that_is_cut_away_is_refused(model: Any, tokenizer: Any) -> None:
    with pytest.raises(TextsError, match="18 examples have no token that counts among their first 5: raise max_tokens"):
        fitted(model, tokenizer, reading=dsas.Reading(max_tokens=5))


def test_sets_that_differ_in_their_answers_alone_are_not_fitted_on_their_instructions(
    model: Any, tokenizer: Any
) -> None:
    reading = dsas.Reading("last-instruction")
    with pytest.raises(TextsError, match="source and control differ only in their answers"):
        fitted(model, tokenizer, reading=reading)
    with pytest.raises(TextsError, match="source and control differ only in their answers"):
        dsas.train(model, tokenizer, **sets(), reading=reading, running=dsas.Running(progress=False))


def test_pipelines_read_no_conversations() -> None:
    with pytest.raises(TextsError, match="a pipeline reads prompts"):
        dsas.fit(tiny_pipeline(), **sets(), progress=False)


def test_an_explanation_of_a_conversation_knows_its_turns_and_which_tokens_count(model: Any, tokenizer: Any) -> None:
    steering, (first, *_) = random_steering(model), talks("AWFUL")
    trace = dsas.explain(model, tokenizer, steering, first)
    (row,), (plain,) = trace.rows(), dsas.explain(model, tokenizer, steering, "a text of its own").rows()
    assert [(turn.role, "".join(row.tokens[turn.start : turn.stop])) for turn in row.turns] == [
        ("user", "<s><user>What of 0?</s>"),
        ("assistant", "<assistant>AWFUL 0</s>"),
    ]
    assert "".join(token for token, counts in zip(row.tokens, row.counted, strict=True) if counts) == "AWFUL 0"
    means = trace.strengths[:, 0, : row.turns[0].stop].mean()
    assert row.by_turn()[0]["mean_strength"] == pytest.approx(float(means))
    assert (plain.turns, plain.counted) == ((), ())
    assert trace.frame().role.value_counts().to_dict() == {
        turn.role: (turn.stop - turn.start) * len(row.sites) for turn in row.turns
    }
    assert "user, mean" in trace.__rich__().plain
    assert '"turns": [{"role": "user"' in trace.to_json()


def test_a_continued_conversation_is_read_up_to_its_answer_and_what_is_generated_is_the_answer(
    model: Any, tokenizer: Any
) -> None:
    steering, (first, *_) = random_steering(model), talks("AWFUL")
    trace = dsas.explain(model, tokenizer, steering, prompt=first, generate=3)
    (row,) = trace.rows()
    assert [turn.role for turn in row.turns] == ["user", "assistant"]
    assert row.turns[-1].stop == len(row.tokens)
    assert "".join(row.tokens[row.turns[1].start :]).startswith("<assistant>")
    assert sum(row.counted) == len(row.tokens) - row.comparison.prompt_tokens


def test_texts_have_no_answers(model: Any, tokenizer: Any) -> None:
    texts = {name: [f"{name} {n}" for n in range(4)] for name in ("source", "control", "target")}
    with pytest.raises(OptionError, match="tokens='answer' reads conversations"):
        fitted(model, tokenizer, texts, reading=dsas.Reading("answer"))
