import pytest

from dsas.errors import OptionError, TextsError
from dsas.evaluation.endings import endings
from dsas.testing import tiny_tokenizer


def test_an_answer_that_used_all_tokens_is_endless_and_one_that_stopped_in_a_sentence_is_broken() -> None:
    answers = ["It is.", "It is", "It is so", 'He said "no"', ""]
    tokens = [len(tiny_tokenizer()(one, add_special_tokens=False)["input_ids"]) for one in answers]
    found = endings(tiny_tokenizer(), answers, tokens[2])
    assert found.endless.tolist() == [count >= tokens[2] for count in tokens]
    assert found.endless[2]
    assert found.broken.tolist() == [False, True, False, False, True]


def test_no_answers_and_no_tokens_are_refused() -> None:
    with pytest.raises(TextsError):
        endings(tiny_tokenizer(), [], 3)
    with pytest.raises(OptionError, match="new_tokens >= 1"):
        endings(tiny_tokenizer(), ["a"], 0)
