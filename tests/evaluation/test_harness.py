import sys
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from makers import hooks_on, random_steering

from dsas.errors import ActivationError, MissingExtraError, OptionError, StrengthError
from dsas.evaluation.choice import Question, choice_accuracy
from dsas.evaluation.harness import steered_class, steered_lm
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = [
    Question("Which is it, then?", (" no", " perhaps not", " yes"), 0),
    Question("What now?", (" one", " twenty two"), 1),
    Question("A or B or none of these:", (" A", " B", " C"), 2),
    Question("Go", (" up the hill", " down", " away"), 1),
]
STRENGTH = 0.2


def test_without_lm_eval_the_extra_is_named(monkeypatch):
    steered_class.cache_clear()
    monkeypatch.setitem(sys.modules, "lm_eval.models.huggingface", None)
    model = tiny_model()
    with pytest.raises(MissingExtraError, match=r"dsas\[lm-eval\]"):
        steered_lm(model, tiny_tokenizer(), random_steering(model))


@pytest.fixture(scope="module")
def evaluate():
    """The package, with nothing of its own tasks: to read their files takes long."""
    package = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_defaults=False)
    return partial(package.simple_evaluate, task_manager=manager, bootstrap_iters=0)


def run(evaluate: Any, lm: Any, task: dict[str, Any]) -> Any:
    """Run one task from memory, without any data set of a hub."""
    import datasets

    rows = [
        {
            "prompt": q.prompt,
            "choices": [c.strip() for c in q.choices],
            "answer": q.answer,
            "text": q.prompt + q.choices[0],
        }
        for q in QUESTIONS
    ]
    config = {
        "task": "from_memory",
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
        "test_split": "test",
        **task,
    }
    results = evaluate(model=lm, tasks=[config])
    return results["results"]["from_memory"], sorted(results["samples"]["from_memory"], key=lambda s: s["doc_id"])


CHOICE = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "{{answer}}",
    "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
}
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
WRITING = {
    "output_type": "generate_until",
    "doc_to_text": "{{prompt}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def answers(samples: list[dict[str, Any]]) -> list[Any]:
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("task", [CHOICE, ROLLING, WRITING], ids=["choice", "rolling", "writing"])
def test_at_strength_0_every_kind_of_request_is_answered_as_by_the_plain_class_and_steering_changes_it(evaluate, task):
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model)
    plain = run(evaluate, HFLM(pretrained=model, tokenizer=tiny_tokenizer(), batch_size=3), task)
    zero = run(evaluate, steered_lm(model, tokenizer, steering, 0.0, batch_size=3), task)
    steered = run(evaluate, steered_lm(model, tokenizer, steering, 1.0, batch_size=3), task)
    assert answers(zero[1]) == answers(plain[1])
    assert zero[0] == plain[0]
    assert all(one != other for one, other in zip(answers(steered[1]), answers(plain[1]), strict=True))
    assert hooks_on(model) == 0
    assert tokenizer.pad_token_id is None


@pytest.mark.parametrize("batch_size", [1, 4])
def test_lm_eval_finds_the_likelihoods_and_accuracies_of_our_own_measure(evaluate, batch_size):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model)
    results, samples = run(evaluate, steered_lm(model, tokenizer, steering, STRENGTH, batch_size=batch_size), CHOICE)
    with steering.apply(model, STRENGTH, record=False):
        sums, normed = (choice_accuracy(model, tokenizer, QUESTIONS, length=n) for n in ("none", "characters"))
    for sample, expected in zip(samples, sums.scores, strict=True):
        np.testing.assert_allclose([float(pair[0]) for pair in sample["filtered_resps"]], expected, rtol=1e-4)
    assert results["acc,none"] == sums.accuracy
    assert results["acc_norm,none"] == normed.accuracy


def test_a_rolling_likelihood_is_that_of_the_steered_model_once_and_not_twice(evaluate):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model)
    _, samples = run(evaluate, steered_lm(model, tokenizer, steering, STRENGTH, batch_size=2), ROLLING)
    text = QUESTIONS[0].prompt + QUESTIONS[0].choices[0]
    row = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    with steering.apply(model, STRENGTH), torch.no_grad():
        logs = model(input_ids=torch.tensor([row])).logits[0].double().log_softmax(-1)
    expected = sum(logs[place, token].item() for place, token in enumerate(row[1:]))
    assert float(np.ravel(samples[0]["filtered_resps"])[0]) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("task", [CHOICE, ROLLING, WRITING], ids=["choice", "rolling", "writing"])
def test_a_strength_at_which_scores_are_no_numbers_is_an_error_and_no_result(evaluate, task):
    model = tiny_model()
    with pytest.raises(ActivationError, match="steer at a smaller strength"):
        run(evaluate, steered_lm(model, tiny_tokenizer(), random_steering(model), 3e38), task)


def test_a_strength_or_batch_size_out_of_range_is_refused(evaluate):
    model = tiny_model()
    with pytest.raises(StrengthError):
        steered_lm(model, tiny_tokenizer(), random_steering(model), float("inf"))
    with pytest.raises(OptionError, match="batch size"):
        steered_lm(model, tiny_tokenizer(), random_steering(model), batch_size=0)
