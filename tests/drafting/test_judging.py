"""Where a judge's scores are cut, and whether it tells the answers apart at all."""

import numpy as np
import pytest

from dsas.drafting.judging import verdict
from dsas.errors import TextsError


def test_the_cut_is_where_most_answers_are_on_their_side_whatever_the_scale_of_the_scores() -> None:
    scores = {"unwanted": np.array([4.0, 5, 6, 1]), "neutral": np.array([0.0, 1, 2, 2]), "wanted": np.array([0.0, 9])}
    found = verdict("mine", scores)
    assert found.cut == 3.0  # between 2 and 4: three of four unwanted above it, all neutral below
    assert found.auroc == (3 * 4 + 1 + 0.5) / 16  # pairs that are in order; a tie counts half
    assert found.shares == {"unwanted": 0.75, "neutral": 0.0, "wanted": 0.5}
    shifted = verdict("mine", {kind: 100 * values - 7 for kind, values in scores.items()})
    assert shifted.cut == 293.0
    assert shifted.shares == found.shares


@pytest.mark.parametrize(
    ("unwanted", "neutral", "auroc", "tells"),
    [
        ([0.0] * 8 + [1] * 2, [0.0] * 4, 0.6, True),  # seldom, but where it is seen it was asked for
        ([0.0] * 11 + [1], [0.0] * 4, 0.5417, False),  # a share of 1/12 is too little to filter by
        ([1.0, 1, 1, 0], [1.0, 1, 0, 0], 0.625, False),  # often, but elsewhere as well
    ],
)
def test_a_judge_tells_when_most_of_what_it_finds_was_asked_for(
    unwanted: list[float], neutral: list[float], auroc: float, tells: bool
) -> None:
    found = verdict("mine", {"unwanted": np.array(unwanted), "neutral": np.array(neutral)})
    assert found.tells is tells
    assert found.auroc == pytest.approx(auroc, abs=1e-4)


def test_a_judge_that_says_the_same_of_everything_finds_the_behaviour_nowhere() -> None:
    found = verdict("mine", {"unwanted": np.ones(4), "neutral": np.ones(4)})
    assert (found.auroc, found.shares) == (0.5, {"unwanted": 0.0, "neutral": 0.0})


def test_a_score_that_is_no_number_is_refused() -> None:
    with pytest.raises(TextsError, match="expected finite numbers from the judge mine, got nan for a neutral answer"):
        verdict("mine", {"unwanted": np.ones(2), "neutral": np.array([0.0, np.nan])})
