import numpy as np
import pytest

from dsas.errors import OptionError
from dsas.evaluation.intervals import bootstrap, bootstrap_groups, bootstrap_ratio


def test_the_interval_of_a_mean_is_that_of_the_normal_theory_over_prompts():
    values = np.random.default_rng(1).normal(2.0, 1.0, (400, 1)).repeat(3, axis=1)
    found = bootstrap(values, resamples=8000)
    error = values[:, 0].std() / np.sqrt(400)
    assert found.mean == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.1 * error
    )
    assert found.n == 400


def test_a_share_of_flags_has_an_interval_and_more_seeds_of_the_same_make_it_no_narrower():
    flags = np.arange(100)[:, None] < 30
    assert bootstrap(flags) == bootstrap(flags.repeat(5, axis=1))
    assert bootstrap(flags).mean == pytest.approx(0.3)
    assert bootstrap(flags).low == pytest.approx(0.21, abs=0.02)


def test_about_95_of_100_intervals_hold_the_true_mean():
    """Of 60 normal values the percentile interval holds it in 94 %; 0.905 and 0.975 are 3 standard errors away."""
    rng = np.random.default_rng(0)
    intervals = [bootstrap(rng.normal(size=(60, 1)), resamples=1000, seed=trial) for trial in range(400)]
    held = np.mean([interval.low <= 0 <= interval.high for interval in intervals])
    assert 0.905 <= held <= 0.975


def test_a_ratio_is_paired_so_a_constant_factor_has_no_spread():
    below = np.random.default_rng(0).uniform(1, 9, (50, 2))
    ratio = bootstrap_ratio(0.25 * below, below)
    assert ratio == pytest.approx((0.25, 0.25, 0.25, 50))


def test_a_ratio_to_a_rare_event_is_open_above():
    below = np.zeros((20, 1))
    below[0] = 1
    ratio = bootstrap_ratio(np.ones((20, 1)), below)
    assert (ratio.mean, ratio.high) == (20.0, np.inf)


@pytest.mark.parametrize("values", [np.zeros((0, 3)), np.zeros((3, 0)), np.array([[1.0], [np.nan]])])
def test_values_with_gaps_are_refused(values):
    with pytest.raises(OptionError, match="finite"):
        bootstrap(values)


def test_ratios_to_nothing_and_of_other_prompts_are_refused():
    with pytest.raises(OptionError, match="whose mean is not 0"):
        bootstrap_ratio(np.ones((3, 1)), np.zeros((3, 1)))


def test_groups_are_drawn_each_for_itself_as_the_normal_theory_has_it():
    rng = np.random.default_rng(3)
    groups = [rng.normal(2.0, 1.0, 400), rng.normal(6.0, 4.0, 100)]

    def mean_of_means(draws):
        return sum(draw @ values / draw.sum(1) for draw, values in zip(draws, groups, strict=True)) / 2

    found = bootstrap_groups(mean_of_means, [400, 100], resamples=8000)
    error = np.sqrt(sum(values.var() / len(values) for values in groups)) / 2
    assert found.mean == pytest.approx((groups[0].mean() + groups[1].mean()) / 2)
    assert (found.low, found.high) == pytest.approx(
        (found.mean - 1.96 * error, found.mean + 1.96 * error), abs=0.1 * error
    )
    assert found.n == 500


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_statistic_of_groups_that_is_not_finite_is_refused(value):
    with pytest.raises(OptionError, match="finite statistic"):
        bootstrap_groups(lambda draws: draws[0].sum(1) * value, [3])


def test_groups_of_equal_sizes_are_not_drawn_alike_and_another_seed_draws_others():
    seen = []

    def first_items(draws):
        seen.append(draws)
        return draws[0][:, 0] + draws[1][:, 0]

    for seed in (0, 1):
        bootstrap_groups(first_items, [50, 50], resamples=4000, seed=seed)
    (one, other), (anew, _) = seen[1], seen[3]
    for pair in ((one, other), (one, anew)):
        counts = [draws[:, 0] for draws in pair]
        assert abs(np.corrcoef(*counts)[0, 1]) < 5 / np.sqrt(4000)
    assert np.array_equal(seen[0][0], np.ones((1, 50)))


@pytest.mark.parametrize("measure", [bootstrap, lambda x, **options: bootstrap_ratio(x, x[::-1] + 1, **options)])
def test_the_seed_and_the_number_of_draws_are_those_that_were_given(measure):
    values = np.random.default_rng(0).uniform(1, 9, (40, 2))
    assert measure(values, seed=3) == measure(values, seed=3) != measure(values, seed=4)
    one = measure(values, resamples=1)
    assert one.low == one.high
