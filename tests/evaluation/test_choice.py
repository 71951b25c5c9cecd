import numpy as np
import pytest
import torch
from makers import Position, random_steering, unchecked

import dsas
from dsas.errors import OptionError, TextsError
from dsas.evaluation.choice import ChoiceResult, Question, choice_accuracy
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = [
    Question("Which is it?", (" no", " perhaps not", " yes"), 0),
    Question("And now, after all this, what? ", ("one", "twenty two"), 1),
    Question("A or B:", (" A", " B", " C", " D"), 2),
]


def by_hand(model, question: Question, length: str) -> np.ndarray:
    """Score each choice alone, in float64, with a token for every byte."""
    found = []
    for choice in question.choices:
        row = tiny_tokenizer()(question.prompt + choice)["input_ids"]
        first = len(question.prompt.encode())
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row])).logits[0].double().numpy()
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        total = sum(logs[place - 1, row[place]] for place in range(first, len(row)))
        found.append(total / {"characters": len(choice.strip()), "tokens": len(row) - first, "none": 1}[length])
    return np.array(found)


def same(one: ChoiceResult, other: ChoiceResult, tolerance: float = 1e-4) -> None:
    for left, right in zip(one.scores, other.scores, strict=True):
        np.testing.assert_allclose(left, right, rtol=tolerance)


@pytest.mark.parametrize("length", ["characters", "tokens", "none"])
def test_scores_margins_and_accuracy_equal_the_definition_in_float64(length):
    model = tiny_model()
    result = choice_accuracy(model, tiny_tokenizer(), QUESTIONS, length=length)
    expected = [by_hand(model, question, length) for question in QUESTIONS]
    for scores, wanted in zip(result.scores, expected, strict=True):
        np.testing.assert_allclose(scores, wanted, rtol=1e-5)
    margins = [
        scores[q.answer] - max(np.delete(scores, q.answer)) for scores, q in zip(expected, QUESTIONS, strict=True)
    ]
    np.testing.assert_allclose(result.margins, margins, rtol=1e-3)
    np.testing.assert_array_equal(
        result.correct, [np.argmax(s) == q.answer for s, q in zip(expected, QUESTIONS, strict=True)]
    )
    assert result.accuracy == pytest.approx(result.correct.mean())


def test_naming_the_likeliest_choices_as_answers_makes_all_of_them_correct_and_others_wrong():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    scores = choice_accuracy(model, tokenizer, QUESTIONS).scores
    right = [q._replace(answer=int(np.argmax(s))) for q, s in zip(QUESTIONS, scores, strict=True)]
    wrong = [q._replace(answer=int(np.argmin(s))) for q, s in zip(QUESTIONS, scores, strict=True)]
    assert choice_accuracy(model, tokenizer, right).accuracy == 1
    assert choice_accuracy(model, tokenizer, wrong).accuracy == 0
    assert choice_accuracy(model, tokenizer, [right[0], wrong[1]]).accuracy == 0.5


def test_a_tie_is_wrong():
    question = Question("Say", (" yes", " yes"), 0)
    result = choice_accuracy(tiny_model(), tiny_tokenizer(), [question])
    assert (result.margins[0], result.accuracy) == (0, 0)


@pytest.mark.parametrize("regulator", [None, Position(), dsas.Cast(torch.ones(32), torch.tensor(0.1))])
def test_steered_rows_are_independent_and_steering_moves_the_scores(regulator):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model, regulator=regulator)
    plain = choice_accuracy(model, tokenizer, QUESTIONS)
    with steering.apply(model, 0.2, record=False):
        together = choice_accuracy(model, tokenizer, QUESTIONS, batch_size=9)
        alone = [choice_accuracy(model, tokenizer, [question], batch_size=1) for question in QUESTIONS]
    by_definition = []
    for question in QUESTIONS:
        with steering.apply(model, 0.2, record=False, prompt_tokens=len(question.prompt.encode())):
            by_definition.append(by_hand(model, question, "characters"))
    for scores, single, wanted, unsteered in zip(together.scores, alone, by_definition, plain.scores, strict=True):
        np.testing.assert_allclose(scores, single.scores[0], rtol=1e-4)
        np.testing.assert_allclose(scores, wanted, rtol=1e-4)
        assert np.abs(scores - unsteered).max() > 1e-3
    same(choice_accuracy(model, tokenizer, QUESTIONS), plain)


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (Question("Q", (" a",), 0), "at least 2"),
        (Question("Q", (" a", " b"), 2), "got 2 of 2"),
        (Question("Q", (" a", " b"), -1), "got -1 of 2"),
        (Question("Q", (" a", ""), 0), "got '' after 'Q'"),
        (Question("", ("a", "b"), 0), "got 'a' after ''"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(question, said):
    with pytest.raises(TextsError, match=said):
        choice_accuracy(tiny_model(), tiny_tokenizer(), [QUESTIONS[0], question])


def test_no_questions_and_options_out_of_range_are_refused():
    with pytest.raises(TextsError, match="got none"):
        choice_accuracy(tiny_model(), tiny_tokenizer(), [])
    for options in ({"length": "words"}, {"batch_size": 0}):
        with pytest.raises(OptionError, match="length in"):
            unchecked(choice_accuracy)(tiny_model(), tiny_tokenizer(), QUESTIONS, **options)
