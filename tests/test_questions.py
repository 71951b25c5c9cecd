import json

import pytest
import questions
from questions import mmlu, quartz, social_iqa

from dsas.demo.models import real_model
from dsas.evaluation.choice import Question, choice_accuracy
from dsas.model.loading import load_model

SOCIAL = "Ash took the bus: it was late. What will Ash do? A: run; B: wait; it comes; C: go home.."
QUARTZ = "Ice gets warmer. It will\n\n A: melt\n B: freeze"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package that holds one line for each set."""
    lines = {
        "theory_of_mind/socialiqa/test.jsonl": {"input": [{"role": "user", "content": SOCIAL}], "ideal": "B"},
        "quartz/samples.jsonl": {"input": [{"role": "system", "content": "-"}, {"content": QUARTZ}], "ideal": "A"},
        "sandbagging/samples-all-large.jsonl": {"question": "2 + 2?\nA. 3\nB. 4\nAnswer:", "answer": "B"},
    }
    for name, line in lines.items():
        file = tmp_path / "evals" / "registry" / "data" / name
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(line) + "\n")
    monkeypatch.setattr(questions, "fetch", lambda name, cache=None: tmp_path)


def test_each_set_is_read_into_prompts_choices_and_answers(package):
    asked = "Q: Ash took the bus: it was late. What will Ash do?\nA:"
    assert social_iqa() == [Question(asked, (" run", " wait; it comes", " go home."), 1)]
    assert quartz() == [Question("Ice gets warmer. It will\nA. melt\nB. freeze\nAnswer:", (" A", " B"), 0)]
    assert mmlu() == [Question("2 + 2?\nA. 3\nB. 4\nAnswer:", (" A", " B", " C", " D"), 1)]


@pytest.mark.real
def test_the_packaged_questions_are_all_there():
    sets = [social_iqa(), quartz(), mmlu()]
    assert [len(found) for found in sets] == [2224, 3860, 1000]
    assert [{len(question.choices) for question in found} for found in sets] == [{3}, {2}, {4}]
    assert all(choice.strip() for found in sets for question in found for choice in question.choices)


@pytest.mark.real
def test_a_small_real_model_answers_social_iqa_above_chance():
    """SmolLM2 reached 0.391 (standard error 0.023) of the first 450 by the text per character; chance is 0.333."""
    model, tokenizer = load_model(str(real_model("smollm2")))
    result = choice_accuracy(model, tokenizer, social_iqa()[:450])
    assert 0.36 < result.accuracy < 0.42
