import itertools
import time
from pathlib import Path

import numpy as np
import pytest
from sweeps import Line, cell_lines, first_toxic, write_samples

from dsas.errors import OptionError
from dsas.evaluation.intervals import bootstrap_ratio
from dsas.sweep.front import Cost
from dsas.sweep.pareto import (
    ACCURACY_COST,
    PERPLEXITY_COST,
    Comparison,
    compare,
    cost_rows,
    front_cells,
    hypervolumes,
    least_toxic,
)
from dsas.sweep.resampling import Resampled, resample
from dsas.sweep.samples import Cell, Samples, read_samples

RNG = np.random.default_rng(0)
SPREAD = RNG.uniform(10, 40, 50)


def drawn(tmp_path: Path, *cells: list[Line], resamples: int = 400) -> Resampled:
    file = write_samples(tmp_path / "s.jsonl", list(itertools.chain(*cells)))
    return resample(read_samples(file), resamples=resamples)


def cell(series: str, strength: float, toxic: int, ratio: float, right: int = 50) -> list[Line]:
    """Return a cell with `toxic` of 20 prompts, `ratio` x perplexity on every sentence and `right` of 100 answers."""
    return cell_lines(
        series,
        strength,
        toxic=first_toxic(toxic),
        perplexities={"web": SPREAD * ratio, "news": SPREAD[::-1] * ratio},
        choices={"quiz": (np.arange(100) < right).astype(int)},
    )


UNSTEERED = cell("unsteered", 0, 10, 1.0)
GOOD = [cell("good", 0.1, 6, 1.02), cell("good", 0.2, 2, 1.1)]
BAD = [cell("bad", 0.1, 8, 1.04, 49), cell("bad", 0.2, 4, 1.2, 40)]


def pair(found: list[Comparison], series: str, other: str) -> Comparison:
    return next(each for each in found if (each.series, each.other) == (series, other))


def test_a_front_better_by_construction_dominates_with_probability_1(tmp_path: Path):
    found = compare(drawn(tmp_path, UNSTEERED, *GOOD, *BAD))
    assert len(found) == 2
    good, bad = pair(found, "good", "bad"), pair(found, "bad", "good")
    assert (good.above, good.dominates) == (1.0, 1.0)
    assert (bad.above, bad.dominates) == (0.0, 0.0)
    assert good.difference.low > 0
    assert bad.difference.mean == -good.difference.mean


def test_hypervolume_of_a_sweep_is_that_of_its_staircase(tmp_path: Path):
    """Of 0.5 x 0.5: (1.02..1.1) x (0.5 - 0.3) + (1.1..1.5) x (0.5 - 0.1)."""
    found = hypervolumes(drawn(tmp_path, UNSTEERED, *GOOD))["good"]
    assert found.mean == pytest.approx((0.08 * 0.2 + 0.4 * 0.4) / 0.25)
    assert 0 <= found.low < found.mean < found.high <= 1
    assert found.n == 20


def test_hypervolume_over_accuracy_counts_points_lost(tmp_path: Path):
    """Of 10 x 0.5: (1..10) x (0.5 - 0.4); the other strength loses all of 10 points."""
    found = hypervolumes(drawn(tmp_path, UNSTEERED, *BAD), cost=ACCURACY_COST)["bad"]
    assert found.mean == pytest.approx(9 * 0.1 / 5)


def test_equal_data_has_a_difference_of_exactly_0_in_every_draw(tmp_path: Path):
    rng = np.random.default_rng(3)
    flags, ratio = rng.random((5, 37, 3)) < 0.2, rng.uniform(1, 1.3, (5, 41))
    twins = [
        cell_lines(name, k + 1, toxic=flags[k], perplexities={"web": ratio[k] * SPREAD[:41]})
        for name in ("one", "another", "third")
        for k in range(5)
    ]
    unsteered = cell_lines("unsteered", 0, toxic=rng.random((37, 3)) < 0.4, perplexities={"web": SPREAD[:41]})
    for each in compare(drawn(tmp_path, unsteered, *twins)):
        assert each.difference == (0.0, 0.0, 0.0, 37)
        assert (each.above, each.dominates) == (0.0, 0.0)


def test_differences_are_paired_by_prompt(tmp_path: Path):
    """One series is less toxic on 3 of 20 prompts and equal on the others: own intervals overlap, yet it is better."""
    once = cell_lines("one", 1, toxic=first_toxic(5), perplexities={"web": SPREAD})
    more = cell_lines("more", 1, toxic=first_toxic(8), perplexities={"web": SPREAD})
    unsteered = cell_lines("unsteered", 0, toxic=first_toxic(20), perplexities={"web": SPREAD})
    found = drawn(tmp_path, unsteered, once, more, resamples=4000)
    own = hypervolumes(found)
    assert own["one"].low < own["more"].mean < own["one"].high
    paired = pair(compare(found), "one", "more")
    # a draw has none of the 3 prompts, and so no difference, with probability 0.85 ** 20 = 0.039
    assert paired.above == pytest.approx(1 - 0.85**20, abs=0.01)


def test_the_interval_of_a_hypervolume_holds_the_true_one_about_as_often_as_it_says():
    """One strength at no cost: hypervolume = 1 - toxic / unsteered. Of 200 intervals at 95 %, 181 is 3 errors below."""
    rng = np.random.default_rng(1)
    held = 0
    for trial in range(200):
        chance = rng.random((150, 1))
        cells = []
        for name, strength, share in (("unsteered", 0.0, 0.6), ("one", 1.0, 0.3)):
            scores, judge = (chance < share)[None].astype(float), np.full((150, 1), np.nan)
            cells.append(Cell(name, strength, (("",),) * 150, scores, judge, {"web": SPREAD}, {}, {}, {}, {}))
        samples = Samples(("alpha",), tuple(range(150)), (0,), tuple(cells), (), {"web": SPREAD})
        found = hypervolumes(resample(samples, resamples=400, seed=trial))["one"]
        held += found.low <= 0.5 <= found.high
    assert 181 <= held <= 199


def test_the_front_leaves_out_what_another_strength_beats(tmp_path: Path):
    found = drawn(tmp_path, UNSTEERED, *GOOD, cell("good", 0.3, 4, 1.3))
    assert [found.cells[column][1] for column in front_cells(found, "good")] == [0, 0.1, 0.2]


def test_the_least_toxic_strength_keeps_both_budgets(tmp_path: Path):
    """0.2 costs too much perplexity; 'careless' keeps that budget and loses 2 points, so that nothing of it counts."""
    careless = cell("careless", 0.1, 0, 1.0, 48)
    found = {each.series: each for each in least_toxic(drawn(tmp_path, UNSTEERED, *GOOD, *BAD, careless))}
    assert {name: each.strength for name, each in found.items()} == {"good": 0.1, "bad": 0.1, "careless": 0}
    assert found["good"].toxic.mean == pytest.approx(0.3)
    assert found["good"].reduction.mean == pytest.approx(0.4)
    assert (found["careless"].toxic.mean, found["careless"].reduction.mean) == (0.5, 0)
    wide = least_toxic(drawn(tmp_path, UNSTEERED, *GOOD), perplexity=1.2)[0]
    assert (wide.strength, wide.toxic.mean) == (0.2, pytest.approx(0.1))


def test_a_budget_of_one_point_holds_one_point_in_spite_of_rounding(tmp_path: Path):
    found = least_toxic(drawn(tmp_path, UNSTEERED, cell("one", 0.1, 1, 1.0, 49)))
    assert found[0].strength == 0.1


def test_the_reduction_has_the_interval_of_the_paired_ratio(tmp_path: Path):
    found = least_toxic(drawn(tmp_path, UNSTEERED, *GOOD, resamples=2000))[0].reduction
    ratio = bootstrap_ratio(first_toxic(6), first_toxic(10), resamples=2000, seed=9)
    assert found.mean == pytest.approx(1 - ratio.mean)
    assert (found.low, found.high) == pytest.approx((1 - ratio.high, 1 - ratio.low), abs=0.03)


def test_a_model_that_broke_down_costs_too_much_and_spoils_nothing_else(tmp_path: Path):
    broken = cell_lines(
        "good", 0.9, toxic=first_toxic(0), perplexities={"web": [float("inf")] * 50, "news": SPREAD},
        choices={"quiz": np.zeros(100)},
    )  # fmt: skip
    without, found = drawn(tmp_path, UNSTEERED, *GOOD), drawn(tmp_path, UNSTEERED, *GOOD, broken)
    assert hypervolumes(found) == hypervolumes(without)
    assert np.isposinf(cost_rows(found, PERPLEXITY_COST)[:, 3]).all()


def test_names_that_were_not_measured_are_refused_with_the_closest(tmp_path: Path):
    found = drawn(tmp_path, UNSTEERED, *GOOD)
    with pytest.raises(OptionError, match="no series 'goods'; closest: 'good'"):
        front_cells(found, "goods")
    with pytest.raises(OptionError, match="no scorer 'alpah'; closest: 'alpha'"):
        hypervolumes(found, scorer="alpah")
    with pytest.raises(OptionError, match="'time' was not measured"):
        hypervolumes(found, cost=Cost("time", 0, 1))


def test_without_questions_only_perplexity_has_a_budget(tmp_path: Path):
    lines = [cell_lines(name, x, toxic=first_toxic(n), perplexities={"web": SPREAD})
             for name, x, n in (("unsteered", 0, 9), ("one", 1, 3))]  # fmt: skip
    found = drawn(tmp_path, *lines)
    assert least_toxic(found)[0].strength == 1
    with pytest.raises(OptionError, match="'accuracy lost' was not measured; closest: 'perplexity ratio'"):
        compare(found, cost=ACCURACY_COST)


def test_a_large_sweep_takes_seconds():
    cells = []
    for number in range(60):
        name, strength = ("unsteered", 0.0) if number == 0 else (f"series {number % 12}", float(number))
        scores = RNG.random((3, 500, 3)) * 0.9
        cells.append(Cell(name, strength, (("one two three four five",) * 3,) * 500, scores, scores[0] + 2,
                          {kind: RNG.uniform(2, 4, 300) for kind in ("web", "news")}, {}, {}, {}, {}))  # fmt: skip
    tokens = dict.fromkeys(("web", "news"), np.full(300, 20.0))
    samples = Samples(("a", "b", "c"), tuple(range(500)), (0, 1, 2), tuple(cells), (), tokens)
    start = time.process_time()
    found = resample(samples)
    assert len(compare(found)) == 12 * 11
    assert time.process_time() - start < 30
