from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from makers import hooks_on, random_steering

from dsas.errors import OptionError, TextsError
from dsas.evaluation.loss_curve import Curve, Losses, Yardstick, ladder, measured_curve
from dsas.testing import tiny_model, tiny_tokenizer

SOURCE = ["The door is open.", "Tea", "A long walk along the river bank, in the rain", "It is late"]
CONTROL = {"short": ["Hello", "Good day", "Farewell now", "Yes"], "long": [text + " or not" for text in SOURCE]}


def lawful(effect, costs, *, square=2.0):
    """Return losses that follow the law: source in proportion to the strength, each kind with its power."""

    def losses(strength):
        control = {kind: np.full(6, cost * strength**square) for kind, cost in costs.items()}
        return Losses(np.full(6, effect * strength), control)

    return losses


def by_hand(model, text, cut=50):
    """Mean log-probability of all tokens but the first, in float64."""
    ids = torch.tensor([tiny_tokenizer()(text)["input_ids"][:cut]])
    with torch.no_grad():
        logs = model(input_ids=ids).logits[0].double().log_softmax(-1)
    return float(logs[:-1].gather(1, ids[0, 1:, None]).mean())


@pytest.mark.parametrize("batch_size", [1, 5])
def test_losses_equal_the_definition_in_float64_for_any_batch_size(batch_size):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    steering = random_steering(model)
    yardstick = Yardstick(model, tokenizer, source=SOURCE, control=CONTROL, max_tokens=9, batch_size=batch_size)
    found = yardstick.losses(steering.apply(model, 0.2, record=False))
    before = {text: by_hand(model, text, 9) for text in [*SOURCE, *CONTROL["short"], *CONTROL["long"]]}
    with steering.apply(model, 0.2, record=False):
        after = {text: by_hand(model, text, 9) for text in before}
    for values, texts in [(found.source, SOURCE), *((found.control[kind], CONTROL[kind]) for kind in CONTROL)]:
        np.testing.assert_allclose(values, [before[text] - after[text] for text in texts], rtol=1e-3, atol=1e-6)
    assert found.damage == pytest.approx(np.mean([found.control["short"].mean(), found.control["long"].mean()]))
    assert hooks_on(model) == 0


def test_the_unsteered_model_is_read_once_however_many_strengths_follow():
    model, passes = tiny_model(), []
    model.register_forward_pre_hook(lambda *_: passes.append(state[0]))
    state = ["unsteered"]

    @contextmanager
    def steered():
        state[0] = "steered"
        yield
        state[0] = "unsteered"

    yardstick = Yardstick(model, tiny_tokenizer(), source=SOURCE, control=CONTROL, batch_size=12)
    for _ in range(3):
        yardstick.losses(steered())
    assert passes == ["unsteered", "steered", "steered", "steered"]


def test_a_model_that_is_not_steered_loses_exactly_nothing():
    found = Yardstick(tiny_model(), tiny_tokenizer(), source=SOURCE, control=CONTROL).losses(nullcontext())
    assert not found.source.any()
    assert found.damage == 0.0


@pytest.mark.parametrize("start", [1e-4, 0.1, 64.0])
@pytest.mark.parametrize("square", [1.0, 2.0, 3.0])
def test_the_curve_encloses_the_damage_by_half_and_twice_from_any_start(start, square):
    asked = []
    law = lawful(1.0, {"a": 1.0}, square=square)
    curve = measured_curve(lambda s: asked.append(s) or law(s), damage=0.02, start=start)
    assert curve.damage[0] <= 0.01
    assert curve.damage[-1] >= 0.04
    assert len(asked) == len(set(asked)) <= 20
    near = [s for s, d in zip(curve.strengths, curve.damage, strict=True) if 0.01 < d < 0.04]
    assert len(near) >= 1


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_a_start_at_which_the_model_breaks_down_is_too_large_and_not_on_the_curve(broken):
    law = lawful(1.0, {"a": 1.0})
    fails = Losses(np.full(6, broken), {"a": np.full(6, broken)})
    curve = measured_curve(lambda s: fails if s > 0.5 else law(s), damage=0.02, start=30.0)
    assert curve.damage[0] <= 0.01
    assert 0.04 <= curve.damage[-1] <= 0.25
    with pytest.raises(OptionError, match="not finite at any strength down to"):
        measured_curve(lambda s: fails)


def test_the_rungs_between_half_and_twice_the_damage_are_asked_for_together():
    law, climb = lawful(1.0, {"a": 1.0}), ladder(damage=0.02, start=0.02)
    asked = [next(climb)]
    while asked[-1] != [0.03, 0.045, 0.0675]:
        asked.append(climb.send([law(strength) for strength in asked[-1]]))
    with pytest.raises(StopIteration) as ended:
        climb.send([law(strength) for strength in asked[-1]])
    assert ended.value.value.rows() == measured_curve(law, damage=0.02, start=0.02).rows()


def test_texts_and_options_out_of_range_are_refused():
    model, tokenizer = tiny_model(), tiny_tokenizer()
    with pytest.raises(TextsError, match="source must hold at least 4"):
        Yardstick(model, tokenizer, source=SOURCE[:3], control=CONTROL)
    with pytest.raises(TextsError, match="control 'short' must hold at least 4"):
        Yardstick(model, tokenizer, source=SOURCE, control={"short": ["Hello"]})
    with pytest.raises(TextsError, match="pass control"):
        Yardstick(model, tokenizer, source=SOURCE, control={})
    with pytest.raises(OptionError, match="max_tokens >= 2"):
        Yardstick(model, tokenizer, source=SOURCE, control=CONTROL, max_tokens=1)
    with pytest.raises(OptionError, match="damage"):
        measured_curve(lawful(1.0, {"a": 1.0}), damage=0.0)
    with pytest.raises(OptionError, match="start <= max_strength"):
        measured_curve(lawful(1.0, {"a": 1.0}), start=2.0, max_strength=1.0)
    with pytest.raises(OptionError, match="ascend"):
        Curve((0.2, 0.1), tuple(lawful(1.0, {"a": 1.0})(strength) for strength in (0.2, 0.1)))


def test_a_text_of_one_token_is_refused_by_the_set_that_it_is_in():
    class Short:
        pad_token_id = 0
        eos_token_id = 0

        def __call__(self, texts, **_):
            return {"input_ids": [[1] if text == "Tea" else [1, 2, 3] for text in texts]}

    with pytest.raises(TextsError, match=r"source: expected texts of at least 2 tokens.*\[1\]"):
        Yardstick(tiny_model(), Short(), source=SOURCE, control=CONTROL)
