from collections.abc import Sequence

import numpy as np
import pytest

from dsas.errors import OptionError, TextsError
from dsas.evaluation.toxicity import toxicity


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
    with pytest.raises(TextsError, match="for every seed"):
        toxicity(continuations, [Stub("read")])


def test_scorers_without_names_of_their_own_are_refused():
    with pytest.raises(OptionError, match="different names"):
        toxicity(CONTINUATIONS, [Stub("read"), Stub("read")])
    with pytest.raises(OptionError, match="threshold"):
        toxicity(CONTINUATIONS, [Stub("read")], threshold=2.0)
