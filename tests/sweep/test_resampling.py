"""Resampling: what is drawn together and what apart, as theory has the correlation and the spread of the draws."""

from typing import Any

import numpy as np
import pytest

from dsas.sweep.resampling import ACCURACY_CHANGE, KL, MEAN, PERPLEXITY_RATIO, TOXIC, Resampled, resample
from dsas.sweep.samples import CHANGE, Cell, Samples

DRAWS, ITEMS = 4000, 60
BOUND = 5 / np.sqrt(DRAWS)  # of the correlation of independent draws: 5 standard errors
VALUES = np.random.default_rng(7).uniform(1, 3, ITEMS)
KINDS = ("web", "news", "code")


def drawn(*, seed: int = 0, pictures: bool = False) -> Resampled:
    """Return the draws of a sweep in which every kind, and every measure, has the same values."""
    of_kind = dict.fromkeys(KINDS, VALUES)
    steered = {kind: values * values for kind, values in of_kind.items()}
    scores = (VALUES > 2).astype(float).reshape(1, ITEMS, 1)
    judge, texts = np.full((ITEMS, 1), np.nan), (("",),) * ITEMS

    def cell(name: str, strength: float, values: dict[str, Any]) -> Cell:
        measured = ({}, {}, {}, values) if pictures else (values, values, values, {})
        perplexities, kl, choices, changes = measured
        named = {"perplexities": perplexities, "kl": kl, "choices": choices, "changes": changes}
        shared = {"texts": texts, "scores": scores, "judge": judge}
        rest = {field: {} for field in Cell._fields if field not in {"series", "strength", *named, *shared}}
        return Cell(series=name, strength=strength, **shared, **named, **rest)

    cells = (cell("unsteered", 0.0, of_kind), cell("one", 1.0, steered))
    return resample(Samples(("alpha",), tuple(range(ITEMS)), (0,), cells, ()), resamples=DRAWS, seed=seed)


def draws(found: Resampled, measure: str, kind: str) -> np.ndarray:
    return found.tables[measure, kind].rows[1:, 1]


def correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one, other)[0, 1])


@pytest.mark.parametrize("measure", [PERPLEXITY_RATIO, KL, ACCURACY_CHANGE, CHANGE])
def test_each_kind_is_drawn_for_itself_although_all_have_the_same_values(measure: str) -> None:
    found = drawn(pictures=measure == CHANGE)
    for one in range(3):
        for other in range(one):
            pair = [draws(found, measure, KINDS[number]) for number in (one, other)]
            assert abs(correlation(*pair)) < BOUND


@pytest.mark.parametrize("measure", [PERPLEXITY_RATIO, KL, ACCURACY_CHANGE, CHANGE])
def test_the_mean_over_kinds_spreads_less_by_the_root_of_their_number(measure: str) -> None:
    found = drawn(pictures=measure == CHANGE)
    each = np.mean([draws(found, measure, kind).std() for kind in KINDS])
    assert draws(found, measure, MEAN).std() == pytest.approx(each / np.sqrt(3), rel=0.05)


def test_sentences_of_a_kind_are_drawn_together_for_perplexity_and_kl() -> None:
    """With the same values, kl and the steered perplexity have the same mean in every draw."""
    found = drawn()
    for kind in KINDS:
        steered = draws(found, KL, kind)
        unsteered = found.tables[KL, kind].rows[1:, 0]
        np.testing.assert_allclose(draws(found, PERPLEXITY_RATIO, kind), steered / unsteered)


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


@pytest.mark.parametrize("measure", [PERPLEXITY_RATIO, KL, ACCURACY_CHANGE, TOXIC])
def test_another_seed_draws_everything_anew_and_the_same_seed_the_same(measure: str) -> None:
    kind = "alpha" if measure == TOXIC else "web"
    one, again, other = (draws(drawn(seed=seed), measure, kind) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert abs(correlation(one, other)) < BOUND
