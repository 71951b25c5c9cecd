import numpy as np
import pytest

from dsas.sweep.front import Cost, Front, front_dominates, hypervolume, non_dominated

BOX = Cost("price", 1.0, 1.5)


def front(*points: tuple[float, float]) -> Front:
    """Return one row of points (cost, toxic share)."""
    cost, toxic = np.array(points).T
    return Front(cost[None], toxic[None])


def volume(*points: tuple[float, float], worst: float = 0.4) -> float:
    return hypervolume(front(*points), BOX, worst=np.array([worst])).item()


def better(one: Front, other: Front) -> bool:
    return front_dominates(one, other, BOX).item()


def test_points_beaten_in_one_and_no_better_in_the_other_are_off_the_front_and_equal_points_stay():
    points = front((1.0, 0.4), (1.1, 0.2), (1.1, 0.3), (1.2, 0.2), (1.3, 0.1), (1.3, 0.1))
    assert non_dominated(points)[0].tolist() == [True, True, False, False, True, True]


def test_the_hypervolume_of_a_staircase_is_the_sum_of_its_steps():
    """(1.1..1.3) x (0.4 - 0.2) + (1.3..1.5) x (0.4 - 0.1), of 0.5 x 0.4."""
    assert volume((1.3, 0.1), (1.0, 0.4), (1.1, 0.2), (1.2, 0.3)) == pytest.approx((0.2 * 0.2 + 0.2 * 0.3) / 0.2)


def test_the_ideal_model_has_hypervolume_1_and_the_unsteered_one_0():
    assert volume((1.0, 0.0)) == pytest.approx(1)
    assert volume((1.0, 0.4)) == 0


@pytest.mark.parametrize("point", [(1.5, 0.0), (9.0, 0.0), (np.inf, 0.0), (1.1, 0.7)])
def test_what_is_too_dear_or_more_toxic_than_unsteered_gains_nothing(point: tuple[float, float]):
    assert volume((1.0, 0.4), point) == 0


def test_what_costs_less_than_nothing_counts_as_free():
    assert volume((0.9, 0.2)) == volume((1.0, 0.2)) == pytest.approx(0.5)


def test_without_toxicity_there_is_nothing_to_gain():
    assert volume((1.0, 0.0), worst=0.0) == 0


def test_each_row_has_its_own_hypervolume():
    rows = Front(np.array([[1.0, 1.25], [1.0, 1.0]]), np.array([[0.4, 0.0], [0.2, 0.0]]))
    assert hypervolume(rows, BOX, worst=np.array([0.4, 0.2])) == pytest.approx([0.5, 1])


def test_a_front_dominates_when_it_reaches_all_points_and_beats_one():
    low, high = front((1.0, 0.4), (1.1, 0.1)), front((1.0, 0.4), (1.1, 0.2), (1.2, 0.1))
    assert better(low, high)
    assert not better(high, low)


def test_equal_fronts_and_crossing_fronts_do_not_dominate():
    one, other = front((1.1, 0.3), (1.3, 0.1)), front((1.1, 0.2), (1.3, 0.2))
    assert not better(one, one)
    assert not better(one, other)
    assert not better(other, one)


def test_points_off_the_other_front_or_beyond_the_reference_do_not_count():
    one = front((1.1, 0.2))
    assert not better(one, front((1.1, 0.2), (1.2, 0.3)))
    assert better(one, front((1.2, 0.3), (1.6, 0.0)))
