import math

import pytest

from dsas.errors import TextsError
from dsas.evaluation.fluency import distinct_2, fluency, repetition


def test_distinct_and_repeated_n_grams_are_counted():
    result = fluency(["a b a b a b a b", "A c d e"])
    assert result.distinct_1 == 5 / 12
    assert result.distinct_2 == 5 / 10  # a b, b a; a c, c d, d e
    assert result.distinct_3 == 4 / 8
    assert result.repetition == pytest.approx((1 - 2 / 5 + 0) / 2)


def test_texts_shorter_than_four_words_repeat_nothing():
    assert fluency(["a a", ""]) == (0.5, 1.0, 0.0, 0.0)


def test_no_texts_are_refused():
    with pytest.raises(TextsError, match="at least one"):
        fluency([])


def test_the_interval_of_distinct_2_is_that_of_the_jackknife_over_prompts():
    found = distinct_2([["x a b"], ["x a c"], ["x a d"]])
    assert found == pytest.approx((4 / 6, 4 / 6, 4 / 6, 3))  # without any one prompt 3 of 4 are different
    uneven = distinct_2([["a b", "a b"], ["a b c"], ["d e"]])
    left = [3 / 3, 2 / 3, 2 / 4]  # different pairs of all pairs without each prompt; a b, b c, d e with all of them
    error = math.sqrt(2 / 3 * sum((each - sum(left) / 3) ** 2 for each in left))
    assert uneven == pytest.approx((3 / 5, 3 / 5 - 1.96 * error, 3 / 5 + 1.96 * error, 3))


def test_the_repetition_of_one_text_is_unknown_below_four_words():
    assert repetition("a b c") is None
    assert repetition("a b a b a b a b") == pytest.approx(1 - 2 / 5)


def test_distinct_2_of_one_prompt_is_refused():
    with pytest.raises(TextsError, match="at least 2 prompts"):
        distinct_2([["a b c"]])
