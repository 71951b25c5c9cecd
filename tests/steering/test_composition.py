"""Composition: several Steerings at once against equation (1) by hand in float64, and sums and multiples of one."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from makers import Position, hooks_on, logits_of, random_steering, unchecked
from torch import Tensor, nn

import dsas
from dsas.errors import DsasWarning, OptionError, StrengthError
from dsas.steering.composition import AppliedTogether, Steers, _each
from dsas.testing import tiny_model, tiny_tokenizer
from dsas.testing.models import WIDTH

SITE = "model.layers.1"
IDS = torch.arange(40, 55).view(3, 5)


@pytest.fixture
def model() -> Any:
    return tiny_model()


def adding(model: nn.Module, vector: Tensor, sites: Any = SITE, **options: Any) -> dsas.Steering:
    options = {"regulator": dsas.Constant(), **options}
    return random_steering(model, sites, transform=dsas.Addition(vector), **options)


def pair(model: nn.Module, sites: Any = SITE) -> tuple[dsas.Steering, dsas.Steering]:
    """Return two Steerings for which the order matters: a rotation, and an addition with a logistic regulator."""
    source, target = torch.randn(9, WIDTH) + 1, torch.randn(9, WIDTH) - 1
    turn = random_steering(model, sites, transform=dsas.Rotation.fit(source, target), regulator=dsas.Constant(0.8))
    return turn, random_steering(model, sites, seed=3)


def by_hand(rule: dsas.Rule, t: Tensor, strengths: list[float]) -> Tensor:
    """Return equation (1) in float64, token by token, for the rules of `pair`."""
    out = t.clone()
    how, when = rule.transform, rule.regulator
    for row, token in np.ndindex(*t.shape[:2]):
        x = t[row, token]
        if isinstance(how, dsas.Rotation):
            first, second, angle = (part.double() for part in (how.first, how.second, how.angle))
            p, q = x @ first, x @ second
            turned = (p * angle.cos() - q * angle.sin()) * first + (p * angle.sin() + q * angle.cos()) * second
            change = 0.8 * (turned - p * first - q * second)
        else:
            odds = x @ when.get_buffer("theta").double() + when.get_buffer("bias").double()
            change = how.get_buffer("vector").double() / (1 + torch.exp(-odds))
        out[row, token] = x + strengths[row] * change
    return out


STRENGTHS: list[tuple[Any, list[float], list[float]]] = [
    (1.0, [1.0] * 3, [1.0] * 3),
    ((0.5, 2.0), [0.5] * 3, [2.0] * 3),
    ([0.3, torch.tensor([1.0, 0.0, 2.0])], [0.3] * 3, [1.0, 0.0, 2.0]),
    ([[1.0, 0.5, 0.0], [0.0, 1.0, 2.0]], [1.0, 0.5, 0.0], [0.0, 1.0, 2.0]),
    (torch.tensor(0.7), [0.7] * 3, [0.7] * 3),
]


@pytest.mark.parametrize("case", range(len(STRENGTHS)), ids=["one", "each", "rows of one", "rows of both", "scalar"])
@pytest.mark.parametrize("swapped", [False, True])
def test_the_left_one_acts_first_each_with_its_own_strength_as_computed_by_hand(
    model: Any, swapped: bool, case: int
) -> None:
    given, *each = STRENGTHS[case]
    steerings = pair(model)[:: -1 if swapped else 1]
    precise = copy.deepcopy(model).double()

    def edit(_module: Any, _args: Any, output: Tensor) -> Tensor:
        for steering, strengths in zip(steerings, each, strict=True):
            output = by_hand(steering.rules[0], output, strengths)
        return output

    precise.get_submodule(SITE).register_forward_hook(edit)
    expected = logits_of(precise, IDS)
    with (steerings[0] | steerings[1]).apply(model, given):
        got = logits_of(model, IDS)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_order_matters_where_the_second_sees_what_the_first_has_done(model: Any) -> None:
    first, second = pair(model)
    logits = []
    for composition in (first | second, second | first):
        with composition.apply(model):
            logits.append(logits_of(model, IDS))
    assert not torch.allclose(*logits, atol=1e-2)


def test_three_act_from_left_to_right_however_they_are_grouped(model: Any) -> None:
    a, b, c = (random_steering(model, seed=seed) for seed in range(3))
    for composition in (a | b | c, a | (b | c), (a | b) | c):
        assert composition.steerings == (a, b, c)
    with (a | b | c).apply(model, (1.0, 0.0, 2.0)):
        together = logits_of(model, IDS)
    with a.apply(model), c.apply(model, 2.0):
        torch.testing.assert_close(together, logits_of(model, IDS))


def test_each_keeps_a_trace_and_a_report_of_its_own(model: Any) -> None:
    first, second = random_steering(model, SITE, regulator=dsas.Constant(0.5)), random_steering(model, seed=1)
    with (first | second).apply(model, (2.0, 1.0)) as applied:
        logits_of(model, IDS)
    assert torch.equal(applied[0].trace().strengths, torch.ones(1, 3, 5))
    assert applied[1].trace().strengths.shape == (3, 3, 5)
    assert [line.mean_strength for line in applied[0].report()] == [1.0]


def test_prompt_lengths_sinks_and_recording_reach_every_member(model: Any) -> None:
    schedule, position = (random_steering(model, SITE, regulator=r) for r in (dsas.Schedule("prompt"), Position()))
    with (schedule | position).apply(model, prompt_tokens=[2, 3, 4], skip_sinks=True) as applied:
        logits_of(model, IDS)
    expected = torch.tensor([[0.0, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
    assert torch.equal(applied[0].trace().strengths[0], expected)
    assert applied[1].trace().strengths[0, 0].tolist() == [0, 2, 3, 4, 5]
    with (schedule | position).apply(model, record=False) as applied:
        logits_of(model, IDS)
    assert not any(one.has_trace for one in applied)


@pytest.mark.parametrize("strength", [(1.0,), (1.0, 1.0, 1.0), []])
def test_strengths_for_another_number_of_steerings_are_refused(model: Any, strength: Any) -> None:
    both = random_steering(model) | random_steering(model, seed=1)
    with pytest.raises(OptionError, match="one strength, or one for each of the 2 Steerings, got"):
        both.apply(model, strength)


@pytest.mark.parametrize("strength", [float("inf"), (1.0, float("nan")), (1.0, [1.0, float("nan")])])
def test_a_strength_that_means_nothing_is_refused_as_for_one_steering(model: Any, strength: Any) -> None:
    both = random_steering(model) | random_steering(model, seed=1)
    with pytest.raises(StrengthError, match="strength must be finite"):
        both.apply(model, strength)


@pytest.mark.parametrize("strength", [1, True, np.float32(1), torch.tensor(1.0), None])
def test_what_is_no_list_is_given_to_every_steering_as_it_is(strength: Any) -> None:
    assert unchecked(_each)(strength, 2) == [strength, strength]


def test_at_strength_zero_no_bit_changes_and_no_hook_is_put_on(model: Any) -> None:
    plain = logits_of(model, IDS)
    with (random_steering(model) | random_steering(model, seed=1)).apply(model, 0.0):
        assert hooks_on(model) == 0
        assert torch.equal(logits_of(model, IDS), plain)


def test_a_composition_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="at least one Steering"):
        dsas.Composition([])


def test_it_is_drawn_as_its_members_in_their_order(model: Any) -> None:
    first, second = random_steering(model, SITE), random_steering(model)
    assert repr(first | second) == f"{first!r}\n| {second!r}"
    assert isinstance(first, Steers)


# Conflicts


def test_conflicts_are_the_steered_sites_of_both_with_the_cosine_of_their_vectors(model: Any) -> None:
    x, y = torch.eye(WIDTH)[:2]
    first = adding(model, x, ["model.layers.0", SITE])
    second = adding(model, x + y, [SITE, "model.layers.2"])
    third = random_steering(model, [SITE], transform=dsas.Ablation(x, torch.tensor(0.0)))
    silent = adding(model, -x, SITE, weight=0.0)
    found = (first | second | third | silent).conflicts()
    assert [(c.site, c.first, c.second) for c in found] == [(SITE, 0, 1), (SITE, 0, 2), (SITE, 1, 2)]
    assert found[0].cosine == pytest.approx(0.5**0.5)
    assert [c.cosine for c in found[1:]] == [None, None]


def test_a_warning_names_two_that_pull_in_opposite_directions(model: Any) -> None:
    x, y = torch.eye(WIDTH)[:2]
    sites = [SITE, "model.layers.2"]
    both = adding(model, x + 0.1 * y, sites) | adding(model, -x, sites)
    message = (
        r"^Steerings 0 and 1 pull in opposite directions at 2 sites, for example at model\.layers\.1 "
        r"\(cosine -1\.00\); see conflicts\(\)$"
    )
    with pytest.warns(DsasWarning, match=message):
        both.apply(model)
    for angle, silent in ((2.0, True), (2.2, False)):  # in radians, of cosines -0.42 and -0.59
        near = adding(model, x) | adding(model, np.cos(angle) * x + np.sin(angle) * y)
        with warnings.catch_warnings(record=True) as caught_near:
            warnings.simplefilter("always")
            near.apply(model)
        assert (not caught_near) == silent


# Hooks come off


def never(_model: Any) -> None:
    raise KeyboardInterrupt


def fails(model: Any) -> None:
    model(torch.tensor([[10**6]]))


@pytest.mark.parametrize(
    ("act", "error"), [(never, KeyboardInterrupt), (fails, IndexError)], ids=["interrupt", "inside the model"]
)
def test_hooks_come_off_when_the_block_is_left_by_an_exception(
    model: Any, act: Callable[[Any], None], error: type[BaseException]
) -> None:
    both = random_steering(model) | random_steering(model, seed=1)
    with pytest.raises(error) as raised, both.apply(model):
        act(model)
    assert raised.value.__context__ is None
    assert hooks_on(model) == 0


def test_hooks_come_off_when_the_second_cannot_be_put_on(model: Any) -> None:
    applied = (random_steering(model, "model.layers.0") | random_steering(model, "model.layers.2")).apply(model)
    model.model.layers = model.model.layers[:2]
    with pytest.raises(AttributeError):
        applied.install()
    assert hooks_on(model) == 0


class Idle(nn.Module):
    """A model of three modules, of which one is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Identity(), nn.Identity(), nn.Identity()

    def forward(self, inputs_embeds: Tensor) -> Tensor:
        return self.second(self.first(inputs_embeds))


def in_a_block(applied: AppliedTogether, model: nn.Module) -> None:
    with applied:
        model(inputs_embeds=torch.randn(1, 2, WIDTH))


def until_removed(applied: AppliedTogether, model: nn.Module) -> None:
    applied.install()
    model(inputs_embeds=torch.randn(1, 2, WIDTH))
    applied.remove()


@pytest.mark.parametrize("use", [in_a_block, until_removed])
def test_a_warning_that_is_an_error_for_the_last_one_does_not_keep_the_hooks_of_the_others_on(use: Any) -> None:
    model = Idle()
    both = random_steering(model, "first") | random_steering(model, "idle")  # the idle one's warning is raised
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DsasWarning, match=r"never fired.*\['idle'\]"):
            use(both.apply(model), model)
    assert hooks_on(model) == 0


def test_installed_steerings_stay_until_they_are_removed_and_removing_twice_is_harmless(model: Any) -> None:
    both = random_steering(model) | random_steering(model, seed=1)
    plain = logits_of(model, IDS)
    with both.apply(model, (1.0, 0.5)):
        expected = logits_of(model, IDS)
    applied = both.apply(model, (1.0, 0.5)).install()
    assert torch.equal(logits_of(model, IDS), expected)
    applied.remove()
    applied.remove()
    assert hooks_on(model) == 0
    assert torch.equal(logits_of(model, IDS), plain)


def test_in_generation_a_composition_steers_as_its_members_one_inside_the_other(model: Any) -> None:
    first, second = pair(model)
    ids = torch.tensor([tiny_tokenizer()("over the hills")["input_ids"]])
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with (first | second).apply(model, (3.0, 2.0)):
        together = model.generate(ids, **options)
    with first.apply(model, 3.0), second.apply(model, 2.0):
        nested = model.generate(ids, **options)
    assert torch.equal(together, nested)
    assert not torch.equal(together, model.generate(ids, **options))
