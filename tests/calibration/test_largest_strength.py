"""Calibration of a toy model whose damage is a known function of the strength at each of its two sites."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import logits_of, random_steering, unchecked
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning, OptionError, StrengthError, TextsError
from dsas.model.identity import ModelIdentity
from dsas.steering.folder import CARD
from dsas.testing import tiny_model, tiny_tokenizer

TUNE = {"plain": [f"plain {n}" for n in range(1, 7)], "odd": [f"odd {n}" for n in range(1, 5)]}
OTHERS = {"plain": [f"plain {n}" for n in range(11, 31)], "odd": [f"odd {n}" for n in range(11, 21)]}


class Toy(nn.Module):
    """Two sites; what it gives is (strength at the mild site, strength at the harsh site)."""

    def __init__(self) -> None:
        super().__init__()
        self.mild, self.harsh, self.scale = nn.Identity(), nn.Identity(), nn.Parameter(torch.ones(1))

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.harsh(self.mild(self.scale * torch.zeros(*input_ids.shape, 2)))[0, 0]


def toy() -> tuple[Toy, dsas.Steering]:
    model = Toy()
    rules = [
        dsas.Rule(dsas.Site(name), dsas.Addition(vector), dsas.Constant())
        for name, vector in zip(("mild", "harsh"), torch.eye(2), strict=True)
    ]
    return model, dsas.Steering(rules, ModelIdentity.of(model))


class Known:
    """A measure of value n * damage(mild, harsh) for the text "kind n"; notes the strengths it was called at."""

    def __init__(self, damage: Callable[[float, float], float]) -> None:
        self.damage = damage
        self.calls: list[tuple[float, str]] = []
        self.stop_at: int | None = None
        self.__qualname__ = "known"

    def __call__(self, model: Toy, tokenizer: None, texts: Sequence[str]) -> list[float]:
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        with torch.no_grad():
            mild, harsh = model(torch.zeros(1, 1, dtype=torch.long)).tolist()
        self.calls.append((mild, texts[0]))
        fragile = 4.0 if "fragile" in texts[0] else 1.0
        return [int(text.split()[1]) * self.damage(fragile * mild, fragile * harsh) for text in texts]


def run(measure: Known, kind: Any = "mean-perplexity", most: float = 1.05, **options: Any) -> dsas.Calibration:
    model, steering = toy()
    budget = options.pop("budget", dsas.Budget(kind, most, measure=measure))
    given = {"tune": TUNE, "held_out": OTHERS, **options}
    return unchecked(dsas.calibrate)(model, None, steering, budget=budget, progress=False, **given)


def squared(mild: float, harsh: float) -> float:
    return 1 + mild**2


def test_the_strength_at_which_a_known_damage_meets_the_budget_is_found_to_five_per_cent_and_its_evidence_kept() -> (
    None
):
    found = run(Known(squared))
    truth = math.sqrt(0.05)
    assert found.broken is not None
    assert found.strength <= truth < found.broken <= 1.05 * found.strength
    (spent,) = found.budgets
    assert spent.tuned == pytest.approx(1 + found.strength**2, rel=1e-5)
    # Every text is damaged by the same factor, and steered and unsteered values stay together: no spread.
    expected = dict.fromkeys(("mean", "low", "high"), pytest.approx(spent.tuned)) | {"n": 30}
    assert spent.held_out == expected
    assert spent.by_kind == {"plain": expected | {"n": 20}, "odd": expected | {"n": 10}}
    assert found.kept
    assert (found.tune, found.held_out) == ({"plain": 6, "odd": 4}, {"plain": 20, "odd": 10})
    strengths = [strength for strength, _ in found.curve]
    assert strengths == sorted(strengths)
    assert {0.005, 0.01, 0.02, found.strength, found.broken} <= set(strengths)
    for strength, damage in found.curve:
        assert damage == pytest.approx(1 + (strength or 0) ** 2, rel=1e-5)


def test_steering_that_first_lowers_perplexity_is_followed_to_where_the_budget_is_lost_for_the_first_time() -> None:
    found = run(Known(lambda mild, harsh: 1 - 0.4 * mild + mild**2 if mild < 3 else 1.0))
    truth = 0.2 + math.sqrt(0.04 + 0.05)
    assert found.strength <= truth < found.strength * 1.05


def test_the_smallest_of_several_budgets_decides_and_the_worst_kind_where_that_is_asked_for() -> None:
    both = (
        dsas.Budget("mean-perplexity", 1.05, measure=Known(squared)),
        dsas.Budget("kl", 0.01, on=("odd",), measure=Known(lambda mild, harsh: mild)),
    )
    with pytest.warns(DsasWarning, match="not kept"):  # the numbers in the held-out texts are larger, and so is "kl"
        found = run(Known(squared), budget=both, start=0.001)
    mean = (1 + 2 + 3 + 4) / 4
    assert found.strength <= 0.01 / mean < found.strength * 1.05
    assert [list(spent.by_kind) for spent in found.budgets] == [["plain", "odd"], ["odd"]]
    budget = dsas.Budget("kl", 0.35, worst=True, measure=Known(lambda mild, harsh: mild))
    with pytest.warns(DsasWarning, match="not kept"):
        worst = run(Known(squared), budget=budget)
    assert worst.strength <= 0.1 < worst.strength * 1.05  # of the plain texts, whose mean number is 3.5


def test_the_surer_the_budget_is_to_be_kept_the_less_of_it_the_tuning_texts_spend() -> None:
    """Text n loses n * strength nats; of tuning texts 1 to 40 the bootstrap mean is near 20.5 +- sqrt(133.25 / 40)."""
    texts = {"plain": [f"plain {n}" for n in range(1, 41)]}

    def strength(sure: float) -> float:
        budget = dsas.Budget("kl", 0.41, measure=Known(lambda mild, harsh: mild), sure=sure)
        found = run(Known(squared), budget=budget, tune=texts, held_out={"plain": TUNE["odd"]})
        assert found.broken is not None
        assert found.broken <= 1.05 * found.strength
        assert (found.budgets[0].sure, found.budgets[0].tuned) == (sure, pytest.approx(20.5 * found.strength, rel=1e-4))
        return found.strength

    error = math.sqrt(133.25 / 40)
    for sure, deviations in ((0.0, 0.0), (0.5, 0.0), (0.9, 1.2816), (0.975, 1.96)):
        most = 0.41 / (20.5 + deviations * error)
        assert most / 1.08 < strength(sure) < 1.03 * most


def test_points_of_accuracy_lost_are_a_budget_of_questions_that_are_no_texts() -> None:
    def correct(model: Toy, tokenizer: None, questions: Sequence[Any]) -> list[float]:
        with torch.no_grad():
            strength = model(torch.zeros(1, 1, dtype=torch.long))[0].item()
        return [float(hard > 10 * strength) for _, hard in questions]

    sets = {name: {"questions": [[name, n / 20] for n in range(1, 21)]} for name in ("tune", "held_out")}
    found = run(Known(squared), budget=dsas.Budget("accuracy", 12.0, measure=correct), **sets)
    assert found.strength <= 0.015 < 1.05 * found.strength  # from there on 3 of 20 are lost, which is more than 12 %
    assert found.budgets[0].tuned == pytest.approx(10.0)


def test_a_budget_that_held_out_texts_break_is_reported_and_does_not_move_the_strength() -> None:
    fragile = {"plain": [f"plain {n} fragile" for n in range(11, 21)]}
    with pytest.warns(
        DsasWarning, match=r"not kept on the held-out texts: mean-perplexity 1\.\d+, at most 1.05, at strength"
    ):
        found = run(Known(squared), held_out=fragile)
    assert not found.kept
    assert found.budgets[0].held_out["mean"] == pytest.approx(1 + 16 * found.strength**2, rel=1e-5)
    assert found.strength == run(Known(squared)).strength
    assert "NOT KEPT" in found.lines()[1]


def test_a_budget_that_no_strength_breaks_ends_at_the_limit_with_a_warning() -> None:
    with pytest.warns(DsasWarning, match="every strength up to the limit 3 keeps the budget"):
        found = run(Known(lambda mild, harsh: 1.0), limit=3)
    assert (found.strength, found.broken) == (3.0, None)


@pytest.mark.parametrize(
    ("value", "ends", "said"),
    [
        (
            1e-4,
            1.28,
            r"cannot tell .* regulators are 0\.0001 on them, .* up to strength 1\.28, which is kept",
        ),
        (0.5, 4.0, "every strength up to the limit 4 keeps the budget"),
    ],
)
def test_texts_that_the_regulators_leave_alone_end_the_search_early_and_others_do_not(
    value: float, ends: float, said: str
) -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    (site, *_), width = dsas.find_sites(model, "residual"), model.config.hidden_size
    regulator = dsas.Logistic(torch.zeros(width), torch.tensor(math.log(value / (1 - value))))
    rule = dsas.Rule(site, dsas.Addition(1e-6 * torch.ones(width)), regulator)
    steering = dsas.Steering([rule], ModelIdentity.of(model))
    with pytest.warns(DsasWarning, match=said):
        found = dsas.calibrate(
            model, tokenizer, steering, tune=TUNE, held_out=OTHERS, budget=dsas.Budget("kl", 0.1), limit=4.0,
            progress=False,
        )  # fmt: skip
    assert (found.strength, found.broken) == (ends, None)


def test_a_budget_that_the_smallest_strength_breaks_is_an_error_that_says_by_how_much() -> None:
    with pytest.raises(
        StrengthError, match=r"0\.005 itself gives mean-perplexity 2 \(at most 1\.05\): use a smaller start, or"
    ):
        run(Known(lambda mild, harsh: 2.0 if mild else 1.0))


def test_damage_that_is_not_finite_breaks_every_budget_and_is_stored_as_none() -> None:
    found = run(Known(lambda mild, harsh: float("nan") if mild > 0.1 else float("inf") if mild > 0.05 else 1.0))
    assert 0.05 / 1.05 < found.strength <= 0.05
    assert None in [damage for _, damage in found.curve]
    json.dumps(found.as_dict(), allow_nan=False)


def test_an_interrupted_calibration_repeats_no_measurement(tmp_path: Path) -> None:
    whole, parts = Known(squared), Known(squared)
    expected = run(whole)
    parts.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        run(parts, checkpoint=tmp_path)
    assert len(parts.calls) == 9
    parts.stop_at = None
    assert run(parts, checkpoint=tmp_path) == expected
    assert parts.calls == whole.calls
    assert len(set(whole.calls)) == len(whole.calls)  # nor does a whole one
    run(parts, checkpoint=tmp_path)
    assert parts.calls == whole.calls
    other = Known(squared)
    with pytest.warns(DsasWarning, match="not kept"):
        run(other, kind="kl", most=9.0, checkpoint=tmp_path)
    assert other.calls  # the same function as another damage is another measurement


@pytest.mark.parametrize(("harm", "weight"), [(9.0, 1 / 9), (400.0, 1 / 10)], ids=["in proportion", "at most tenfold"])
def test_per_site_the_more_harmful_site_gets_less_in_proportion_to_the_damage_it_does_alone(
    harm: float, weight: float
) -> None:
    def damage(mild: float, harsh: float) -> float:
        return mild**2 + harm * harsh**2

    mean = ((1 + 6) / 2 + (1 + 4) / 2) / 2  # of the numbers in the texts, by which the damage is multiplied
    options = {"budget": dsas.Budget("kl", 0.02, measure=Known(damage)), "per": "site", "start": 1e-4}
    with pytest.warns(DsasWarning, match="not kept"):
        found = run(Known(damage), **options)
    assert found.weights == {"mild": 1.0, "harsh": pytest.approx(weight, rel=1e-4)}
    truth = math.sqrt(0.02 / mean / (1 + harm * weight**2))
    assert found.strength <= truth < 1.05 * found.strength
    model, steering = toy()
    calibrated = steering.calibrated(found)
    assert [rule.weight for rule in calibrated.rules] == list(found.weights.values())
    with calibrated.apply(model):
        applied = model(torch.zeros(1, 1, dtype=torch.long)).tolist()
    assert applied == pytest.approx([found.strength, found.strength * weight], rel=1e-4)


@pytest.mark.filterwarnings("ignore:the budget is not kept")
def test_per_site_a_calibrated_steering_calibrated_again_is_the_same_and_so_it_is_after_one_of_all_sites() -> None:
    def again(steering: dsas.Steering, **options: Any) -> dsas.Calibration:
        budget = dsas.Budget("kl", 0.02, measure=Known(lambda mild, harsh: mild**2 + 9 * harsh**2))
        given = {"tune": TUNE, "held_out": OTHERS, "budget": budget, "start": 1e-4, "progress": False, **options}
        return unchecked(dsas.calibrate)(model, None, steering, **given)

    model, steering = toy()
    first = again(steering, per="site")
    once = steering.calibrated(first)
    assert again(once, per="site") == first
    of_all = again(once)
    assert of_all.weights is None
    assert again(once.calibrated(of_all), per="site") == first


def test_per_site_leaves_sites_alone_that_are_not_steered() -> None:
    model, steering = toy()
    some = dsas.Steering([steering.rules[0], steering.rules[1]._replace(weight=0.0)], steering.model)
    budget = dsas.Budget("mean-perplexity", 1.05, measure=Known(squared))
    found = dsas.calibrate(model, None, some, tune=TUNE, held_out=OTHERS, budget=budget, per="site", progress=False)
    assert found.weights == {"mild": 1.0, "harsh": 0.0}


def test_per_site_needs_damage_to_tell_sites_apart() -> None:
    with pytest.raises(OptionError, match="at strength 16 none does"):
        run(Known(lambda mild, harsh: 1.0), per="site")


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"held_out": {"x": [*OTHERS["plain"], "plain 2", "odd 3"]}}, TextsError, "2 held-out texts are tuning texts"),
        ({"tune": ["plain 1", "plain 2", "plain 3"]}, TextsError, r"tune\['texts'\] must hold at least 4 texts, got 3"),
        ({"tune": "plain 1"}, TextsError, "got one text"),
        ({"tune": {}}, TextsError, "at least one kind"),
        ({"held_out": {"q": [[1], [2]]}}, TextsError, r"held_out\['q'\] must hold at least 4 texts, got 2"),
        ({"per": "head"}, OptionError, "per 'all' or 'site'"),
        ({"start": 0.0}, OptionError, "0 < start <= limit"),
        ({"limit": 0.001}, OptionError, "0 < start <= limit"),
        ({"budget": ()}, OptionError, "at least one budget"),
        ({"budget": dsas.Budget("kl", 0.1, on=("news",))}, OptionError, "on kind 'news'"),
        ({"budget": dsas.Budget("kl", 0.1, sure=0.3)}, OptionError, "sure must be 0, or from 0.5 to below 1, got 0.3"),
    ],
)
def test_what_cannot_be_calibrated_is_refused_before_anything_is_measured(
    options: dict[str, Any], kind: type[Exception], message: str
) -> None:
    measure = Known(squared)
    with pytest.raises(kind, match=message):
        run(measure, **options)
    assert measure.calls == []


def test_a_steering_that_steers_nothing_is_refused() -> None:
    model, steering = toy()
    idle = dsas.Steering([rule._replace(weight=0.0) for rule in steering.rules], steering.model)
    with pytest.raises(OptionError, match="weights are all 0"):
        dsas.calibrate(model, None, idle, tune=TUNE, held_out=OTHERS, progress=False)


@pytest.fixture(scope="module")
def real() -> tuple[Any, dsas.Steering, dsas.Calibration]:
    """Return a tiny language model, a Steering and its calibration by perplexity and KL."""
    model = tiny_model()
    steering = random_steering(model)
    budgets = (dsas.Budget("perplexity", 1.2), dsas.Budget("kl", 0.1))
    texts = [f"the door number {n} is open" for n in range(24)]
    found = dsas.calibrate(
        model, tiny_tokenizer(), steering, tune=texts[::2], held_out=texts[1::2], budget=budgets, progress=False
    )
    return model, steering, found


def test_a_calibrated_steering_is_stored_with_its_evidence_and_applied_at_its_strength_to_the_bit(
    real: tuple[Any, dsas.Steering, dsas.Calibration], tmp_path: Path
) -> None:
    model, steering, found = real
    assert [found.budgets[0].tuned <= 1.2, found.budgets[1].tuned <= 0.1] == [True, True]
    calibrated = steering.calibrated(found)
    calibrated.save_pretrained(tmp_path)
    again = dsas.Steering.from_pretrained(tmp_path)
    assert (steering.strength, again.strength) == (None, found.strength)
    assert again.calibration == found
    ids = torch.arange(40, 50)[None]
    with steering.apply(model, found.strength):
        expected = logits_of(model, ids)
    for one in (calibrated, again):
        with one.apply(model) as applied:
            assert torch.equal(logits_of(model, ids), expected)
        assert applied.strength == torch.tensor(found.strength)
        installed = one.apply(model).install()
        assert torch.equal(logits_of(model, ids), expected)
        installed.remove()
    assert dsas.explain(model, tiny_tokenizer(), again, "Hi").strength == torch.tensor([found.strength])
    with again.apply(model, 1.0) as applied:
        assert applied.strength == 1.0
    assert f"calibrated strength {found.strength:.4g}" in repr(again)
    card = (tmp_path / CARD).read_text()
    assert all(line in card for line in found.lines())


def test_the_digest_is_that_of_the_steering_without_a_strength(
    real: tuple[Any, dsas.Steering, dsas.Calibration],
) -> None:
    _, steering, found = real
    assert steering.calibrated(found).digest() == steering.digest()


def test_a_perplexity_that_was_stored_before_is_read_as_the_mean_over_texts_that_it_was(
    real: tuple[Any, dsas.Steering, dsas.Calibration],
) -> None:
    stored = real[2].as_dict()
    assert dsas.Calibration.from_dict(stored) == real[2]
    del stored["format"]
    found = dsas.Calibration.from_dict(stored)
    assert [spent.damage for spent in found.budgets] == ["mean-perplexity", "kl"]
    assert dsas.Calibration.from_dict(found.as_dict()) == found


def test_a_calibration_goes_with_the_steering_it_was_made_of(real: tuple[Any, dsas.Steering, dsas.Calibration]) -> None:
    model, _, found = real
    with pytest.raises(OptionError, match="computed for another Steering"):
        random_steering(model, seed=1).calibrated(found)


def test_sums_and_multiples_are_not_calibrated_and_compositions_take_the_strength_of_each(
    real: tuple[Any, dsas.Steering, dsas.Calibration],
) -> None:
    model, steering, found = real
    calibrated, plain = steering.calibrated(found), random_steering(model, seed=1)
    assert (2.0 * calibrated).strength is None
    assert (calibrated + random_steering(model)).strength is None
    both = calibrated | plain
    assert [one.strength.item() for one in both.apply(model)] == [pytest.approx(found.strength), 1.0]
    assert [one.strength.item() for one in both.apply(model, (None, 0.5))] == [pytest.approx(found.strength), 0.5]
    assert [one.strength.item() for one in both.apply(model, 0.25)] == [0.25, 0.25]
