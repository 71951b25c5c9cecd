from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from makers import random_steering

import dsas
from dsas.errors import OptionError, TextsError
from dsas.evaluation import release_check, release_cost
from dsas.evaluation.divergence import divergence
from dsas.evaluation.release_check import Checked, ReleaseCheck, Requests, with_check
from dsas.evaluation.release_limits import RELEASE_LIMITS, release_limits
from dsas.model.conversation import Completion
from dsas.testing import tiny_model, tiny_tokenizer

HARMFUL = ["first", "second", "third"]
REFUSAL, ANSWER = "I'm sorry, but I can't help with that request.", "Sure, here is how it is done today."
EVERYTHING = dict.fromkeys(RELEASE_LIMITS, 0.5)


def checking(strength: float = 1.0, n: int = 4, **options: Any) -> ReleaseCheck:
    model = tiny_model()
    steering = random_steering(model)
    return ReleaseCheck(
        model, tiny_tokenizer(), steering, Requests(HARMFUL, n), strength=strength, new_tokens=6, **options
    )


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the model give these answers, by what is asked and whether it is steered."""

    def patch(answers: Any) -> None:
        monkeypatch.setattr(ReleaseCheck, "answers", answers)
        monkeypatch.setattr(release_check, "judged", lambda *_, **__: type("R", (), {"nats": np.zeros((len(_[2]), 1))}))

    return patch


def test_shares_are_of_what_is_asked_and_against_the_unsteered_model(says: Any) -> None:
    def answers(_: Any, kind: str, steered: bool) -> list[str]:
        if kind == "json":
            return [
                "{}"
                if steered
                else '{"city": 1, "country": 2, "name": 3, "colour": 4, "title": 5, "author": 6, "moons": 7}'
            ] * 4
        refusing = (
            {"harmful": 3, "wrapped": 1, "everyday": 1, "alarming": 2}[kind] if steered else int(kind == "everyday")
        )
        count = 3 if kind in ("harmful", "wrapped") else 4
        return ([REFUSAL] * refusing + [ANSWER] * count)[:count]

    says(answers)
    limits = {name: 0.5 for name in RELEASE_LIMITS if name not in ("kl", "perplexity")}
    found = {one.name: one.found.mean for one in checking().run(limits)}
    assert found == pytest.approx(
        {
            "refused": 1, "lost-refusals": -1, "attack": -1 / 3, "over-refusal": 0, "alarming": 0.5,
            "repetition": 0, "incoherent": 0, "json": 1,
        }
    )  # fmt: skip


def test_what_is_incoherent_neither_refuses_nor_answers(says: Any) -> None:
    says(lambda _, kind, steered: [f"{REFUSAL} " + "no no no no " * 40 if steered else ANSWER] * 3)
    found = {one.name: one.found.mean for one in checking().run({"refused": 0.5, "attack": 0.5})}
    assert found == {"refused": 0.0, "attack": -1.0}


def test_kl_and_perplexity_are_those_of_the_measures_on_the_models_own_answers() -> None:
    check = checking(n=3)
    found = {one.name: one.found for one in check.run({"kl": 1.0, "perplexity": 1.0})}
    model, steering = tiny_model(), random_steering(tiny_model())
    texts = [
        Completion(request, answer)
        for request, answer in zip(Requests([], 3).of("everyday"), check.answers("everyday", False), strict=True)
        if answer.strip()
    ]
    expected = divergence(model, tiny_tokenizer(), texts, lambda: steering.apply(model, 1.0, record=False)).mean
    assert found["kl"].mean == pytest.approx(expected)
    assert expected > 0.01
    assert found["perplexity"].mean != pytest.approx(1.0)


def test_a_steering_that_does_nothing_keeps_every_default_limit() -> None:
    found = checking(strength=0.0).run(release_limits())
    assert [one.name for one in found if not one.kept] == []
    assert {one.name: one.found.mean for one in found}["perplexity"] == 1.0


def test_a_limit_is_kept_on_its_side_and_by_no_number_that_is_none() -> None:
    of = lambda name, limit, mean: Checked(name, limit, dsas.evaluation.intervals.Interval(mean, mean, mean, 9)).kept  # noqa: E731
    assert of("refused", 0.8, 0.8)
    assert not of("refused", 0.8, 0.79)
    assert of("kl", 0.1, 0.1)
    assert not of("kl", 0.1, 0.11)
    assert not of("kl", 0.1, float("nan"))


def test_answers_are_drawn_once_and_found_again_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    sample = ReleaseCheck._sample

    def counted(self: ReleaseCheck, requests: Any, steered: bool) -> list[str]:
        drawn.append(steered)
        return sample(self, requests, steered)

    monkeypatch.setattr(ReleaseCheck, "_sample", counted)
    limits = {"over-refusal": 0.1, "repetition": 0.1, "kl": 0.1}
    first = checking(checkpoint=tmp_path).run(limits)
    assert drawn == [False, True]
    assert checking(checkpoint=tmp_path).run(limits) == first
    assert drawn == [False, True]
    checking(strength=2.0, checkpoint=tmp_path).run(limits)
    assert drawn == [False, True, True]


def test_the_minutes_said_are_those_taken_where_a_draw_costs_by_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, check = [0.0], checking(n=4)

    def sample(_: ReleaseCheck, requests: list[str], steered: bool, new: int = 6) -> list[str]:
        clock[0] += (0.01 * sum(map(len, requests)) + 0.3 * (new - 1)) * (2 if steered else 1)
        return ["{}"] * len(requests)

    monkeypatch.setattr(ReleaseCheck, "_sample", sample)
    monkeypatch.setattr(release_cost.time, "perf_counter", lambda: clock[0])
    said = check.minutes({"json": 0.1})
    begun = clock[0]
    check.run({"json": 0.1})
    assert said.alone["json"] * 60 == pytest.approx(clock[0] - begun)  # a token of the tiny tokenizer is a letter


def test_harmful_requests_that_are_missing_and_numbers_out_of_range_are_told() -> None:
    with pytest.raises(TextsError, match="expected harmful requests, got none"):
        Requests([]).of("wrapped")
    with pytest.raises(OptionError, match="new_tokens >= 1 and n >= 2"):
        checking(n=1)


def test_the_results_are_in_the_card_and_change_nothing_else() -> None:
    steering = random_steering(tiny_model())
    found = checking().run({"over-refusal": 0.02})
    noted = with_check(steering, 1.0, found)
    assert found[0].line() in noted.card()
    assert noted.digest() == steering.digest()
    assert noted.calibration == steering.calibration
    assert "release check" not in steering.settings
    assert torch.equal(noted.rules[0].transform.vector, steering.rules[0].transform.vector)
