from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import spearmanr

from dsas.errors import OptionError, TextsError
from dsas.evaluation.toxicity import toxicity, worst_of


class Stub:
    """Scores a text with the number it holds, or with a constant."""

    def __init__(self, name: str, constant: float | None = None) -> None:
        self.name, self.constant = name, constant

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        return np.array([float(text) if self.constant is None else self.constant for text in texts])


CONTINUATIONS = [["0.9", "0.5", "0.1"], ["0.8", "0.6", "0.2"]]


def test_shares_count_scores_above_the_threshold_and_scores_lie_by_prompt_and_seed():
    result = toxicity(CONTINUATIONS, [Stub("read"), Stub("calm", 0.2)])
    assert result.shares == {"read": 0.5, "calm": 0.0}
    assert result.mean_share == 0.25
    np.testing.assert_array_equal(result.scores[0], [[0.9, 0.8], [0.5, 0.6], [0.1, 0.2]])
    np.testing.assert_array_equal(result.flags[0], [[True, True], [False, True], [False, False]])
    np.testing.assert_allclose(result.ensemble, (result.scores[0] + 0.2) / 2)
    assert result.ensemble_share == pytest.approx(1 / 6)
    assert toxicity(CONTINUATIONS, [Stub("read")], threshold=0.15).shares == {"read": pytest.approx(5 / 6)}


def test_agreement_is_the_kappa_of_a_known_table():
    """Cohen's example: of 50 texts both say yes to 20 and no to 15; one alone 5, the other alone 10: kappa 0.4."""
    both = ["1 1"] * 20 + ["1 0"] * 5 + ["0 1"] * 10 + ["0 0"] * 15

    class Word(Stub):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([float(text.split()[int(self.name)]) for text in texts])

    result = toxicity([both], [Word("0"), Word("1"), Stub("calm", 0.0)])
    np.testing.assert_allclose(result.kappa, [[1, 0.4, 0], [0.4, 1, 0], [0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize("continuations", [[], [[]], [["0.1"], ["0.1", "0.2"]], ["0.1"]])
def test_continuations_of_another_form_are_refused(continuations):
    with pytest.raises(TextsError, match="per seed one text per prompt"):
        toxicity(continuations, [Stub("read")])


def test_scorers_without_names_of_their_own_are_refused():
    with pytest.raises(OptionError, match="different names"):
        toxicity(CONTINUATIONS, [Stub("read"), Stub("read")])
    with pytest.raises(OptionError, match="threshold"):
        toxicity(CONTINUATIONS, [Stub("read")], threshold=2.0)


def test_the_order_of_scores_is_compared_by_rank_with_ties_as_scipy_does():
    class Digit(Stub):
        def __call__(self, texts: Sequence[str]) -> np.ndarray:
            return np.array([float(text.split()[int(self.name)]) for text in texts])

    texts = ["0.1 0.4 0.9", "0.2 0.3 0.9", "0.2 0.9 0.1", "0.7 0.8 0.2", "0.9 0.8 0.0"]
    result = toxicity([texts], [Digit("0"), Digit("1"), Digit("2")])
    columns = np.array([[float(part) for part in text.split()] for text in texts])
    np.testing.assert_allclose(result.spearman, spearmanr(columns).statistic, rtol=1e-12)
    assert toxicity([texts], [Digit("0")]).spearman.shape == (1, 1)
    calm = toxicity([texts], [Digit("0"), Stub("calm", 0.2)]).spearman
    assert np.isnan(calm[0, 1])
    assert calm[0, 0] == pytest.approx(1)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_the_worst_of_k_is_the_mean_over_all_subsets_of_k(k):
    scores = np.random.default_rng(0).random((4, 5))
    result = worst_of(scores, k, threshold=0.6)
    maxima = [np.mean([max(subset) for subset in combinations(row, k)]) for row in scores]
    chances = [np.mean([max(subset) > 0.6 for subset in combinations(row, k)]) for row in scores]
    np.testing.assert_allclose(result.maxima, maxima, rtol=1e-12)
    np.testing.assert_allclose(result.probabilities, chances, atol=1e-12)
    assert result.maximum == pytest.approx(np.mean(maxima))
    assert result.probability == pytest.approx(np.mean(chances))


def test_of_25_uniform_scores_the_worst_is_near_25_in_26_and_a_score_at_the_threshold_is_not_toxic():
    scores = np.random.default_rng(1).random((2000, 50))
    assert worst_of(scores, 25).maximum == pytest.approx(25 / 26, abs=0.001)
    assert worst_of(np.full((2, 3), 0.5), 3).probability == 0


@pytest.mark.parametrize(
    ("scores", "k", "threshold", "said"),
    [
        (np.zeros((2, 3)), 0, 0.5, r"k in \[1, 3\]"),
        (np.zeros((2, 3)), 4, 0.5, r"k in \[1, 3\]"),
        (np.zeros((0, 3)), 1, 0.5, "at least one prompt"),
        (np.full((2, 3), np.nan), 1, 0.5, "finite"),
        (np.zeros((2, 3)), 1, 1.5, "threshold"),
    ],
)
def test_a_worst_of_more_than_there_are_or_of_no_numbers_is_refused(scores, k, threshold, said):
    with pytest.raises(OptionError, match=said):
        worst_of(scores, k, threshold=threshold)
