import numpy as np
import pytest

from dsas.errors import TextsError
from dsas.evaluation.turn_repetition import reuse, turn_repetition


def test_four_grams_are_counted_within_an_answer_and_across_those_before_it() -> None:
    found = turn_repetition([["a b c d e", "x y z", "b c d e b c d e"], ["a b c d", "a b c d", "A B C D e"]])
    np.testing.assert_allclose(found.within, [[0, np.nan, 1 - 4 / 5], [0, 0, 0]])
    np.testing.assert_allclose(found.across, [[np.nan, np.nan, 2 / 5], [np.nan, 1, 1 / 2]])


def test_reuse_is_the_mean_over_sentences_of_the_nearest_earlier_one() -> None:
    vectors = {"North.": [1.0, 0.0], "East.": [0.0, 1.0], "Between!": [0.6, 0.8]}
    embed = lambda texts: np.array([vectors[text] for text in texts])  # noqa: E731
    found = reuse([["North.", "East. Between!", "", "North. East."]], embed)
    np.testing.assert_allclose(found, [[np.nan, (0.0 + 0.6) / 2, np.nan, 1.0]])


@pytest.mark.parametrize("conversations", [[], [[]], [["a"], ["a", "b"]], ["text"]])
def test_conversations_of_different_lengths_and_none_are_refused(conversations: list) -> None:
    with pytest.raises(TextsError, match="with the same number of answers"):
        turn_repetition(conversations)
