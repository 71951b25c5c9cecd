"""Curves of series whose losses follow a law, so that the selectivity of each is what theory has it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from makers import random_steering

import dsas
from dsas.errors import TextsError
from dsas.evaluation.selectivity import without_regulator
from dsas.sweep.curves import Start, measure_curves, read_curves
from dsas.testing import tiny_model

TEXTS = 6


class Law:
    """Gives losses: source effect * strength, each kind cost * strength^2, by the scale of a Steering's regulators."""

    def __init__(self, effects: dict[str, float]) -> None:
        self.effects, self.rounds = effects, []

    def __call__(self, asked: Sequence[tuple[dsas.Steering | None, float]]) -> list[Any]:
        self.rounds.append([(steering and steering.digest(), strength) for steering, strength in asked])
        return [self._one(steering, strength) for steering, strength in asked]

    def _one(self, steering: dsas.Steering | None, strength: float) -> dict[str, Any]:
        effect = self.effects[steering.digest()] if steering else 0.0

        def losses(lost: float) -> dict[str, Any]:
            return {"nats per token": (np.linspace(2, 4, TEXTS) + lost).tolist(), "tokens": [9] * TEXTS}

        return {"source": losses(effect * strength), "kinds": {"web": losses(strength**2), "news": losses(strength**2)}}


def made() -> tuple[Law, list[Start]]:
    """Return three series: one constant, another of its transform, and one that has no constant one beside it."""
    model = tiny_model()
    steerings = [random_steering(model, seed=seed) for seed in range(3)]
    names = [("plain", "caa", "constant"), ("gated", "caa", "logistic"), ("found", "stored", "stored")]
    effects = {one.digest(): effect for one, effect in zip(steerings, (0.5, 2.0, 3.0), strict=True)}
    effects[without_regulator(steerings[2]).digest()] = 1.5
    series = [Start(name, one, *of, 0.05) for one, (name, *of) in zip(steerings, names, strict=True)]
    return Law(effects), series


def test_each_series_is_compared_with_the_constant_one_of_its_transform_or_with_itself_without_regulator() -> None:
    law, series = made()
    found = measure_curves(law, series).selectivities(resamples=50, seed=0)
    assert list(found) == ["plain", "gated", "found"]
    at = 0.02**0.5  # where every kind loses 0.02
    nats = {name: one.nats.mean for name, one in found.items() if one.nats}
    ratios = {name: one.ratio.mean for name, one in found.items() if one.ratio}
    assert nats == pytest.approx({"plain": 0.5 * at, "gated": 2 * at, "found": 3 * at}, rel=1e-3)
    assert ratios == pytest.approx({"plain": 1.0, "gated": 4.0, "found": 2.0}, rel=1e-3)


def test_all_series_are_measured_side_by_side_and_none_at_a_strength_twice() -> None:
    law, series = made()
    measure_curves(law, series)
    assert law.rounds[0] == [(None, 0.0)]
    assert len(law.rounds[1]) == 4
    asked = [one for some in law.rounds for one in some]
    assert len(asked) == len(set(asked))


def test_a_steering_whose_regulator_is_constant_already_is_compared_with_itself_and_read_once() -> None:
    constant = without_regulator(random_steering(tiny_model()))
    law = Law({constant.digest(): 1.0})
    found = measure_curves(law, [Start("one", constant, "stored", "stored", 0.1)])
    assert (found.against, list(found.curves)) == ({"one": "one"}, ["one"])


def test_what_is_written_is_read_back_and_without_a_file_nothing_was_measured(tmp_path: Path) -> None:
    law, series = made()
    found, file = measure_curves(law, series), tmp_path / "curves.json"
    file.write_text(json.dumps(found.as_dict()))
    again = read_curves(file)
    assert again.as_dict() == found.as_dict()
    assert {name: one.nats for name, one in again.selectivities(resamples=50, seed=3).items()} == {
        name: one.nats for name, one in found.selectivities(resamples=50, seed=3).items()
    }
    assert read_curves(tmp_path / "none.json").selectivities(resamples=50, seed=0) == {}


@pytest.mark.parametrize("text", ["{", "[]", '{"damage": 0.02}', '{"damage": 1, "against": {}, "curves": {"a": [3]}}'])
def test_a_file_that_holds_something_else_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "curves.json").write_text(text)
    with pytest.raises(TextsError, match=r"curves.json: not the curves of a sweep .* run the sweep again"):
        read_curves(tmp_path / "curves.json")
