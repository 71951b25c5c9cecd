"""Every law, on every transform with every regulator and every family of models; and that laws can be broken."""

from typing import Any, ClassVar

import pytest
import torch
from makers import random_steering
from torch import Tensor, nn

import dsas
from dsas.fitting.method_names import regulator_fit, transform_fit
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator
from dsas.testing import (
    FAMILIES,
    LawBroken,
    check_compiled,
    check_regulator,
    check_steering,
    check_transform,
    tiny_model,
    tiny_tokenizer,
)
from dsas.testing.models import WIDTH


@pytest.mark.parametrize("name", dsas.TRANSFORMS)
def test_every_transform_keeps_the_laws(name: str) -> None:
    check_transform(dsas.TRANSFORMS[name])


REGULATORS = [
    *(name for name in dsas.REGULATORS if name not in ("product", "per-step")),
    "logistic*posterior",
    "cast*schedule",
]


@pytest.mark.parametrize("name", [name for name in REGULATORS if "*" not in name])
def test_every_regulator_keeps_the_laws(name: str) -> None:
    check_regulator(dsas.REGULATORS[name])


@pytest.mark.parametrize(
    "regulator",
    [
        dsas.Product([dsas.Logistic(torch.randn(16), torch.tensor(0.1)), dsas.Constant(0.5)]),
        dsas.Product([dsas.Schedule("all", 1, 4), dsas.HalfSpace(torch.randn(16), torch.tensor(0.0))]),
        dsas.Schedule("prompt"),
        dsas.Schedule("all", start=2),
        dsas.Cast(torch.randn(16), torch.tensor(0.3), above=False),
        dsas.Posterior(torch.randn(16), torch.randn(16), torch.randn(16)),
    ],
    ids=repr,
)
def test_regulators_made_by_hand_keep_the_laws(regulator: dsas.Regulator) -> None:
    check_regulator(regulator)


def test_a_function_as_a_transform_keeps_the_laws() -> None:
    check_transform(dsas.Custom(lambda t: 0.5 * t + 1))


def law_steering(model: Any, transform: str, regulator: str, sites: Any) -> dsas.Steering:
    """Return a Steering whose methods are fitted on random activations of the width of the sites."""
    width = WIDTH // dsas.find_sites(model, sites)[0].parts
    source, control, target = (torch.randn(n, width) + shift for n, shift in ((12, 0.5), (9, -0.5), (10, -0.4)))
    how = transform_fit(transform)(source, target)
    when = regulator_fit(regulator)(source, control, target).regulator
    return random_steering(model, sites, transform=how, regulator=when)


@pytest.mark.parametrize("regulator", REGULATORS)
@pytest.mark.parametrize("transform", dsas.TRANSFORMS)
def test_every_transform_with_every_regulator_keeps_the_laws_on_a_model(transform: str, regulator: str) -> None:
    model = tiny_model("llama", layers=2)
    sites = ["re:.*\\.0\\.mlp", "model.layers.1"]
    check_steering(law_steering(model, transform, regulator, sites), model, tiny_tokenizer())


@pytest.mark.parametrize("regulator", ["constant", "logistic*posterior", "cast"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_heads_are_steered_by_the_laws(family: str, regulator: str) -> None:
    model = tiny_model(family, layers=2)
    check_steering(law_steering(model, "iti", regulator, "heads"), model, tiny_tokenizer())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_models_can_be_steered_by_the_laws(family: str) -> None:
    model = tiny_model(family)
    check_steering(random_steering(model, ["residual", "attention"]), model, tiny_tokenizer())


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "opt"])
def test_norms_and_mlps_of_every_family_that_has_them_can_be_steered_by_the_laws(family: str) -> None:
    model = tiny_model(family)
    check_steering(random_steering(model, ["norm", "mlp"]), model, tiny_tokenizer())


@pytest.mark.compile
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_compiled_models_are_steered_whenever_steering_comes_and_goes(family: str) -> None:
    model = tiny_model(family, layers=2)
    check_compiled(random_steering(model), model, tiny_tokenizer(), backend="eager")


class _Half(dsas.Addition):
    """A transform that keeps every law; each class below breaks one."""

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> dsas.Transform:
        return cls(target.mean(0) - source.mean(0))


class _InPlace(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return t.mul_(2.0) + self.vector


class _LooksAround(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return self.vector + 0.0 * t.float() + t.float().mean(1, keepdim=True)


class _Narrow(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return t * self.vector.to(t.dtype)


class _Detached(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return t * self.vector.detach()


class _WrongShape(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return self.vector.expand(1, 1, -1)


class _NanAtZero(_Half):
    def edit(self, t: Tensor) -> Tensor:
        return t.float() / t.float().norm(dim=-1, keepdim=True) + self.vector


class _Forgets(_Half):
    def __init__(self, vector: Tensor) -> None:
        nn.Module.__init__(self)
        self.keep(vector=2 * vector)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (_Half, None),
        (_InPlace, 3),
        (_LooksAround, 2),
        (_Narrow, 3),
        (_Detached, 7),
        (_WrongShape, 3),
        (_NanAtZero, 3),
        (_Forgets, 5),
    ],
)
def test_a_transform_that_breaks_a_law_is_told_which(method: type[dsas.Transform], law: int | None) -> None:
    if law is None:
        check_transform(method)
        return
    with pytest.raises(LawBroken, match=rf"^law {law} \("):
        check_transform(method)


class _Gate(dsas.Regulator):
    """A regulator that keeps every law; each class below breaks one."""

    name: ClassVar[str] = "gate"
    theta: Tensor

    def __init__(self, theta: Tensor) -> None:
        super().__init__()
        self.keep(theta=theta)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(source.mean(0) - control.mean(0)), accuracy=0.9)

    def score(self, t: Tensor) -> Tensor:
        return torch.sigmoid(t.to(self.theta.dtype) @ self.theta).unsqueeze(-1)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t)


class _FirstRow(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t[:1]).expand(len(t), -1, -1)


class _Counts(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        index = torch.arange(t.shape[1]).view(1, -1, 1)
        return self.score(t) * (index > 0)


class _SeesPadding(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t.float().mean(1, keepdim=True)).expand(-1, t.shape[1], -1)


class _Negative(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t) - 0.9


class _HalfPrecision(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t).to(t.dtype)


class _GateDetached(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.score(t.detach())


class _Boasts(_Gate):
    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(source.mean(0) - control.mean(0)), accuracy=90.0)


class _BareFit(_Gate):
    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> Any:
        return cls(source.mean(0) - control.mean(0))


class _Remembers(_Gate):
    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        self.theta.mul_(0.5)
        return self.score(t)


@pytest.mark.parametrize(
    ("method", "law"),
    [
        (_Gate, None),
        (_FirstRow, 2),
        (_Counts, 2),
        (_SeesPadding, 2),
        (_Negative, 3),
        (_HalfPrecision, 3),
        (_GateDetached, 7),
        (_Boasts, 6),
        (_BareFit, 5),
        (_Remembers, 3),
    ],
)
def test_a_regulator_that_breaks_a_law_is_told_which(method: type[dsas.Regulator], law: int | None) -> None:
    if law is None:
        check_regulator(method)
        return
    with pytest.raises(LawBroken, match=rf"^law {law} \("):
        check_regulator(method)


@pytest.mark.parametrize(("method", "law"), [(_FirstRow, 2), (_Counts, 2), (_SeesPadding, 2)])
def test_a_regulator_that_looks_past_its_row_is_caught_on_a_model_too(method: type[_Gate], law: int) -> None:
    model = tiny_model()
    steering = random_steering(model, regulator=method(torch.randn(WIDTH) * 0.3))
    with pytest.raises(LawBroken, match=rf"^law {law} \("):
        check_steering(steering, model, tiny_tokenizer())


def test_checking_the_laws_leaves_the_model_and_the_global_random_state_as_they_were() -> None:
    model = tiny_model()
    state = torch.random.get_rng_state()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    steering = random_steering(model)
    check_steering(steering, model, tiny_tokenizer())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_transform(dsas.Addition)
    check_regulator(dsas.Logistic)
    tiny_model()
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_tiny_model_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    one, again, other = (tiny_model(seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_an_unknown_family_of_tiny_models_is_refused_with_the_closest_names() -> None:
    with pytest.raises(dsas.DsasError, match="'lama'; closest: 'llama'"):
        tiny_model("lama")


def test_the_tiny_tokenizer_has_no_padding_token_and_gives_every_text_back() -> None:
    tokenizer = tiny_tokenizer()
    text = "Grüße, 世界!\n"
    assert tokenizer.pad_token is None
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
