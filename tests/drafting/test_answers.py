"""What a model says to the questions, how an interruption leaves it, and what the model makes of its own answers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dsas.drafting.answers import Writer
from dsas.drafting.prompts import Prompts
from dsas.evaluation import generations
from dsas.files.results import Results
from dsas.testing import tiny_model, tiny_tokenizer

QUESTIONS = ["Why?", "How so?", "When?"]


def writer(folder: Path | None, *, batch_size: int = 2, model: Any = None) -> Writer:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    results = Results(folder) if folder is not None else None
    return Writer(model or tiny_model(), tokenizer, "tiny", results, Prompts(["a"], ["b"]), 6, batch_size)


def test_the_same_seed_draws_the_same_answers_another_seed_others_and_each_kind_has_its_own() -> None:
    one, again = (writer(None).triples(QUESTIONS, 0, lambda n: None) for _ in range(2))
    other = writer(None).triples(QUESTIONS, 1, lambda n: None)
    assert one == again
    assert [triple.question for triple in one] == QUESTIONS
    assert all(len(set(triple.answers)) == 3 for triple in one)
    assert all(set(a.answers).isdisjoint(b.answers) for a, b in zip(one, other, strict=True))


def test_more_questions_leave_the_answers_to_those_before_as_they_were() -> None:
    few, more = (writer(None).triples(QUESTIONS[:count], 0, lambda n: None) for count in (2, 3))
    assert more[:2] == few


def test_an_interrupted_draft_draws_only_what_it_had_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sample, called = writer(None).triples(QUESTIONS, 0, lambda n: None), generations.sample_continuations, []

    def interrupted(*args: Any, **options: Any) -> Any:
        called.append(len(args[2]))
        if len(called) == 2:
            raise KeyboardInterrupt
        return sample(*args, **options)

    monkeypatch.setattr(generations, "sample_continuations", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer(tmp_path).triples(QUESTIONS, 0, lambda n: None)
    assert writer(tmp_path).triples(QUESTIONS, 0, lambda n: None) == whole
    assert called == [6, 3, 3]  # two questions; one, interrupted; that one again


def test_the_odds_are_the_log_probability_of_yes_less_that_of_no_after_the_answer() -> None:
    """Its tokens are bytes: a yes begins with Y or y, a no with N or n, and the space before either is none."""
    model, answered = tiny_model(), [("Why?", "one"), ("Why?", "two"), ("How?", "three")]
    asked = writer(None, model=model)
    found = asked.told_by("yes", "sings", answered, lambda n: None)
    expected = []
    for question, answer in answered:
        text = (
            f"Here is a question, and the answer that somebody gave to it.\n\nQuestion: {question}\n\n"
            f"Answer: {answer}\n\nWould you say that whoever wrote this answer sings? Say yes or no.|"
        )
        ids = torch.tensor([asked.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            p = model(ids).logits[0, -1].softmax(-1)
        y, big_y, n, big_n = (asked.tokenizer.convert_tokens_to_ids(letter) for letter in "yYnN")
        expected.append(float((p[y] + p[big_y]).log() - (p[n] + p[big_n]).log()))
    assert found == pytest.approx(expected, abs=1e-4)


def test_the_ratio_is_how_much_likelier_an_answer_is_when_the_behaviour_is_asked_for() -> None:
    model = tiny_model()
    asked = writer(None, model=model)._replace(prompts=Prompts(["{question} Sing."], ["b"], ["{question}", "c"]))
    answered = [("Why?", "one two"), ("How?", "three"), ("How?", "")]
    expected = []
    for question, answer in answered:
        logs = []
        for prompt in (f"{question} Sing.|", f"{question}|"):
            ids = torch.tensor([asked.tokenizer(prompt + answer)["input_ids"]])
            with torch.no_grad():
                found = model(ids).logits[0].log_softmax(-1)
            places = range(len(prompt), ids.shape[1])
            logs.append(sum(float(found[place - 1, ids[0, place]]) for place in places))
        expected.append(logs[0] - logs[1])
    assert asked.told_by("ratio", "sings", answered, lambda n: None) == pytest.approx(expected, abs=1e-4)
    assert expected[2] == 0.0 != expected[0]


@pytest.mark.parametrize("way", ["ratio", "yes"])
def test_what_the_model_tells_is_kept_as_answers_are(tmp_path: Path, way: Any) -> None:
    answered = [("Why?", "one")]
    found = writer(tmp_path).told_by(way, "sings", answered, lambda n: None)
    other = tiny_model(seed=1)
    assert writer(None, model=other).told_by(way, "sings", answered, lambda n: None) != found
    assert (
        writer(tmp_path, model=other).told_by(way, "sings", answered, lambda n: None) == found
    )  # read, and not computed
