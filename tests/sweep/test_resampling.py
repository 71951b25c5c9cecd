"""Resampling: what is drawn together and what apart, as theory has the correlation and the spread of the draws."""

from typing import Any

import numpy as np
import pytest

from dsas.sweep.resampling import (
    ACCURACY_CHANGE,
    KL,
    MEAN,
    MEAN_PERPLEXITY_RATIO,
    PERPLEXITY_RATIO,
    TOXIC,
    Resampled,
    resample,
)
from dsas.sweep.samples import CHANGE, Cell, Samples

DRAWS, ITEMS = 4000, 60
BOUND = 5 / np.sqrt(DRAWS)  # of the correlation of independent draws: 5 standard errors
VALUES = np.random.default_rng(7).uniform(1, 3, ITEMS)
TOKENS = np.random.default_rng(8).integers(1, 40, ITEMS).astype(float)
KINDS = ("web", "news", "code")


def drawn(*, seed: int = 0, pictures: bool = False, tokens: np.ndarray = TOKENS) -> Resampled:
    """Return the draws of a sweep in which every kind, and every measure, has the same values."""
    of_kind = dict.fromkeys(KINDS, VALUES)
    steered = {kind: values * values for kind, values in of_kind.items()}
    scores = (VALUES > 2).astype(float).reshape(1, ITEMS, 1)
    judge, texts = np.full((ITEMS, 1), np.nan), (("",),) * ITEMS

    def cell(name: str, strength: float, values: dict[str, Any]) -> Cell:
        measured = ({}, {}, {}, values) if pictures else (values, values, values, {})
        losses, kl, choices, changes = measured
        named = {"losses": losses, "kl": kl, "choices": choices, "changes": changes}
        shared = {"texts": texts, "scores": scores, "judge": judge}
        rest = {field: {} for field in Cell._fields if field not in {"series", "strength", *named, *shared}}
        return Cell(series=name, strength=strength, **shared, **named, **rest)

    cells = (cell("unsteered", 0.0, of_kind), cell("one", 1.0, steered))
    by_kind = dict.fromkeys(KINDS, tokens)
    return resample(Samples(("alpha",), tuple(range(ITEMS)), (0,), cells, (), by_kind), resamples=DRAWS, seed=seed)


def draws(found: Resampled, measure: str, kind: str) -> np.ndarray:
    return found.tables[measure, kind].rows[1:, 1]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("measure", [PERPLEXITY_RATIO, MEAN_PERPLEXITY_RATIO, KL, ACCURACY_CHANGE, CHANGE])
def test_each_kind_is_drawn_for_itself_although_all_have_the_same_values(measure: str) -> None:
    found = drawn(pictures=measure == CHANGE)
    for one in range(3):
        for other in range(one):
            pair = [draws(found, measure, KINDS[number]) for number in (one, other)]
            assert abs(correlation(*pair)) < BOUND


@pytest.mark.parametrize("measure", [KL, ACCURACY_CHANGE, CHANGE])
def test_the_mean_over_kinds_spreads_less_by_the_root_of_their_number(measure: str) -> None:
    found = drawn(pictures=measure == CHANGE)
    each = np.mean([draws(found, measure, kind).std() for kind in KINDS])
    assert draws(found, measure, MEAN).std() == pytest.approx(each / np.sqrt(3), rel=0.05)


def test_the_perplexity_ratio_is_of_all_tokens_together_and_the_papers_of_the_means_over_texts() -> None:
    found, lost = drawn(), VALUES * VALUES - VALUES
    together = np.exp((lost * TOKENS).sum() / TOKENS.sum())
    of_texts = np.exp(VALUES * VALUES).mean() / np.exp(VALUES).mean()
    for measure, expected in ((PERPLEXITY_RATIO, together), (MEAN_PERPLEXITY_RATIO, of_texts)):
        assert found.tables[measure, "web"].rows[0, 1] == pytest.approx(expected)
        assert found.tables[measure, MEAN].rows[0, 1] == pytest.approx(expected)


def test_the_spread_of_the_log_loss_is_that_of_a_ratio_of_sums_over_texts() -> None:
    """By the delta method: sd of the ratio of sums = root of sum (tokens (lost - mean))^2 over sum of tokens."""
    lost = VALUES * VALUES - VALUES
    mean = np.average(lost, weights=TOKENS)
    expected = np.sqrt((TOKENS**2 * (lost - mean) ** 2).sum()) / TOKENS.sum()
    assert np.log(draws(drawn(), PERPLEXITY_RATIO, "web")).std() == pytest.approx(expected, rel=0.05)


def test_sentences_of_a_kind_are_drawn_together_for_perplexities_and_kl() -> None:
    """With as many tokens in each, log-loss and kl of the same values have the same mean in every draw."""
    found = drawn(tokens=np.full(ITEMS, 7.0))
    for kind in KINDS:
        lost = found.tables[KL, kind].rows[1:, 1] - found.tables[KL, kind].rows[1:, 0]
        np.testing.assert_allclose(draws(found, PERPLEXITY_RATIO, kind), np.exp(lost))
        assert correlation(draws(found, MEAN_PERPLEXITY_RATIO, kind), lost) > 5 * BOUND


def test_questions_are_drawn_apart_from_sentences_and_both_apart_from_prompts() -> None:
    found = drawn()
    prompts = draws(found, TOXIC, "alpha")
    for kind in KINDS:
        sentences, questions = draws(found, KL, kind), draws(found, ACCURACY_CHANGE, kind)
        assert abs(correlation(sentences, questions)) < BOUND
        assert abs(correlation(prompts, sentences)) < BOUND
        assert abs(correlation(prompts, questions)) < BOUND


def test_the_same_prompts_and_sentences_are_drawn_for_every_cell() -> None:
    found = drawn()
    rows = found.tables[TOXIC, "alpha"].rows
    np.testing.assert_array_equal(rows[:, 0], rows[:, 1])


@pytest.mark.parametrize("measure", [PERPLEXITY_RATIO, MEAN_PERPLEXITY_RATIO, KL, ACCURACY_CHANGE, TOXIC])
def test_another_seed_draws_everything_anew_and_the_same_seed_the_same(measure: str) -> None:
    kind = "alpha" if measure == TOXIC else "web"
    one, again, other = (draws(drawn(seed=seed), measure, kind) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert abs(correlation(one, other)) < BOUND
