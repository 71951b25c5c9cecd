import pytest

from dsas.errors import TextsError
from dsas.evaluation.fluency import fluency


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
