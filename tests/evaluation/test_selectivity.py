import numpy as np
import pytest
from makers import random_steering

import dsas
from dsas.errors import OptionError
from dsas.evaluation.loss_curve import Curve, Losses, Yardstick, measured_curve
from dsas.evaluation.selectivity import measure_selectivity, selectivity
from dsas.testing import tiny_model, tiny_tokenizer

SOURCE = ["The door is open.", "Tea", "A long walk along the river bank, in the rain", "It is late"]
CONTROL = {"short": ["Hello", "Good day", "Farewell now", "Yes"], "long": [text + " or not" for text in SOURCE]}


def lawful(effect, costs, *, texts=6, spread=0.0, square=2.0):
    """Return losses that follow the law: source in proportion to the strength, each kind with its power."""
    around = 1 + spread * np.linspace(-1, 1, texts)

    def losses(strength):
        return Losses(
            effect * strength * around, {kind: cost * strength**square * around for kind, cost in costs.items()}
        )

    return losses


def at(losses, strengths):
    return Curve(tuple(strengths), tuple(losses(strength) for strength in strengths))


def test_quadratic_damage_and_linear_effect_give_the_value_that_theory_gives():
    # damage (2 + 4) / 2 s^2 = 0.03 at s = 0.1, where the source has lost 0.5 * 0.1; the second kind alone earlier
    curve = measured_curve(lawful(0.5, {"a": 2.0, "b": 4.0}), damage=0.03, start=1.0)
    found = selectivity(curve, damage=0.03)
    assert found.reached
    assert found.strength.mean == pytest.approx(0.1, rel=1e-4)
    assert found.nats.mean == pytest.approx(0.05, rel=1e-4)
    assert (found.nats.low, found.nats.high) == pytest.approx((0.05, 0.05), rel=1e-4)
    assert found.nats.n == 18
    assert found.kinds["a"].loss.mean == pytest.approx(0.02, rel=1e-4)
    assert found.kinds["b"].loss.mean == pytest.approx(0.04, rel=1e-4)
    assert found.kinds["b"].nats.mean == pytest.approx(0.5 * (0.03 / 4) ** 0.5, rel=1e-4)


def test_the_first_strength_that_does_the_damage_is_meant_where_damage_falls_again():
    flat = lambda x: np.full(4, x)  # noqa: E731
    damages, effects = [0.01, 0.04, 0.001, 0.5], [0.1, 0.2, 9.0, 9.0]
    curve = Curve(
        (1.0, 2.0, 3.0, 4.0), tuple(Losses(flat(e), {"a": flat(d)}) for d, e in zip(damages, effects, strict=True))
    )
    assert selectivity(curve, damage=0.02).strength.mean == pytest.approx(2**0.5)
    assert selectivity(curve, damage=0.02).nats.mean == pytest.approx(0.1 * 2**0.5)


def test_where_a_rung_gains_the_way_to_the_next_is_a_straight_line():
    flat = lambda x: np.full(4, x)  # noqa: E731
    curve = Curve((1.0, 4.0), (Losses(flat(-0.2), {"a": flat(-0.02)}), Losses(flat(0.6), {"a": flat(0.06)})))
    found = selectivity(curve, damage=0.02)
    assert found.nats.mean == pytest.approx(0.2)
    assert found.kinds["a"].loss.mean == pytest.approx(0.02)


def test_the_ratio_of_two_regulators_on_the_same_texts_has_no_width_where_one_is_a_multiple_of_the_other():
    # damage r^2 c s^2, effect r e s with r = 3 for both kinds of text: equal at equal damage; effect alone x 3 is 3
    strengths = np.geomspace(0.01, 1, 12)
    first = at(lawful(1.5, {"a": 2.0}, spread=0.9), strengths)
    other = at(lawful(0.5, {"a": 2.0}, spread=0.9), strengths)
    found = selectivity(first, damage=0.02, against=other)
    assert tuple(found.ratio)[:3] == pytest.approx((3.0, 3.0, 3.0), rel=1e-6)
    assert found.nats.low < 0.97 * found.nats.mean < 1.03 * found.nats.mean < found.nats.high
    assert selectivity(first, damage=0.02).ratio is None


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, hits, truth = np.random.default_rng(0), 0, 0.5 * 0.1
    for _ in range(120):
        e, c = rng.gamma(4, 0.5 / 4, 80), rng.gamma(4, 2.0 / 4, 80)
        strengths = (0.03, 0.06, 0.09, 0.12, 0.2, 0.3)
        curve = Curve(strengths, tuple(Losses(e * s, {"a": c * s * s}) for s in strengths))
        found = selectivity(curve, damage=0.02, resamples=400)
        hits += found.nats.low <= truth <= found.nats.high
    assert 0.88 <= hits / 120 <= 1.0


def test_a_damage_that_no_strength_reaches_is_said_to_be_not_reached():
    curve = measured_curve(lawful(1.0, {"a": 1e-6}), damage=0.02, max_strength=8.0)
    assert curve.strengths[-1] <= 8.0
    found = selectivity(curve, damage=0.02, against=at(lawful(1.0, {"a": 1.0}), [0.1, 1.0]))
    assert (found.reached, found.nats, found.strength, found.ratio, found.kinds) == (False, None, None, None, {})
    assert [row["damage"] for row in found.curve.rows()] == pytest.approx([1e-6 * s * s for s in curve.strengths])


def test_a_kind_that_never_loses_the_damage_says_so_by_itself():
    found = selectivity(at(lawful(1.0, {"a": 1.0, "b": 0.0}), [0.1, 0.2, 0.4]), damage=0.03)
    assert found.reached
    assert found.kinds["a"].nats.mean == pytest.approx(0.03**0.5)
    assert found.kinds["b"].nats is None


def test_a_draw_that_does_not_reach_the_damage_counts_as_infinite_and_never_as_the_last_strength():
    found = selectivity(at(lawful(1.0, {"a": 1.0}, spread=0.9), [0.05, 0.1, 0.1415]), damage=0.02)
    assert found.nats.mean == pytest.approx(0.02**0.5, rel=1e-3)
    assert found.nats.high == np.inf


def test_a_steering_on_a_model_is_measured_from_end_to_end():
    model = tiny_model()
    yardstick = Yardstick(model, tiny_tokenizer(), source=SOURCE, control=CONTROL)
    curves = []
    for regulator in (None, dsas.Constant()):
        steering = random_steering(model, regulator=regulator)
        curves.append(measured_curve(lambda s, made=steering: yardstick.losses(made.apply(model, s, record=False))))
    assert selectivity(curves[0], against=curves[1]).curve is curves[0]
    again = yardstick.losses(random_steering(model).apply(model, curves[0].strengths[0], record=False))
    np.testing.assert_array_equal(again.source, curves[0].losses[0].source)


@pytest.mark.parametrize("square", [1.0, 2.0, 3.0])
def test_the_strength_is_exact_for_every_power_law(square):
    curve = measured_curve(lawful(1.0, {"a": 1.0}, square=square), damage=0.02)
    assert selectivity(curve, damage=0.02).strength.mean == pytest.approx(0.02 ** (1 / square), rel=1e-3)


def test_curves_and_options_out_of_range_are_refused():
    curve = at(lawful(1.0, {"a": 1.0}), [0.1, 0.2])
    with pytest.raises(OptionError, match="damage above 0"):
        selectivity(curve, damage=-1.0)
    with pytest.raises(OptionError, match="resamples"):
        selectivity(curve, resamples=0)
    with pytest.raises(OptionError, match="same texts"):
        selectivity(curve, against=at(lawful(1.0, {"a": 1.0}, texts=5), [0.1, 0.2]))


def test_a_steering_is_measured_against_itself_without_a_regulator():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    constant = random_steering(model, "model.layers.1", regulator=dsas.Constant(1.0))
    found = measure_selectivity(model, tokenizer, constant, source=SOURCE, control=CONTROL, progress=False)
    assert found.ratio.mean == found.ratio.low == 1.0
    gated = random_steering(model, "model.layers.1")
    other = measure_selectivity(model, tokenizer, gated, source=SOURCE, control=CONTROL, progress=False)
    assert other.ratio.mean == pytest.approx(other.nats.mean / found.nats.mean)
    assert other.as_dict()["ratio"]["mean"] == other.ratio.mean != 1.0
