"""Own words: as many as asked for, different, repeatable, whole sentences; and what is refused."""

import pytest

import dsas
from dsas.errors import OptionError, TextsError
from dsas.evaluation.own_words import whole
from dsas.testing import tiny_model, tiny_tokenizer


def test_the_model_writes_as_many_different_texts_as_asked_for_and_the_same_ones_again() -> None:
    model, tokenizer = tiny_model(), tiny_tokenizer()
    openers = [f"{letter} {letter} {letter} {letter} x" for letter in "abcdef"]
    texts = dsas.general_texts(model, tokenizer, 10, openers=openers, new_tokens=6, progress=False)
    assert len(set(texts)) == len(texts) == 10
    assert {text[0] for text in texts} == set("abcdef")
    assert texts == dsas.general_texts(model, tokenizer, 10, openers=openers, new_tokens=6, progress=False)
    assert texts != dsas.general_texts(model, tokenizer, 10, openers=openers, new_tokens=6, seed=9, progress=False)


def test_a_text_ends_with_its_last_whole_sentence_and_stands_in_one_line() -> None:
    assert whole("One day.\n Two  days! And th") == "One day. Two days!"
    assert whole("no end in sight") == "no end in sight"


def test_a_model_that_says_too_little_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        TextsError, match=r"expected 3 different texts of at least 5 words.*wrote 0 in 4 rounds: ask for fewer"
    ):
        dsas.general_texts(tiny_model(), tiny_tokenizer(), 3, openers=["a"], new_tokens=1, progress=False)
    with pytest.raises(OptionError, match="expected n >= 1"):
        dsas.general_texts(tiny_model(), tiny_tokenizer(), 0)
