"""Packing: methods as JSON and tensors and back; methods in methods; and what is not what it was packed from."""

import json
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import dsas
from dsas.errors import ArtifactError, OptionError
from dsas.methods.base import Fitted, same
from dsas.methods.registry import Registry
from dsas.model.forward_pass import ForwardPass
from dsas.regulators.base import FittedRegulator
from dsas.steering.serialization import pack, unpack

OF_OTHERS = ("product", "per-step", "clean")  # regulators made of others
DIM = 6


class Softened(dsas.Regulator):
    """Wraps one regulator, beside plain arguments of every kind that JSON has."""

    name: ClassVar[str] = "softened"

    def __init__(self, of: dsas.Regulator, power: float, notes: list[str], offset: Tensor, end: int | None) -> None:
        super().__init__()
        self.keep(of=of, power=power, notes=notes, offset=offset, end=end)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        inner = dsas.Logistic.fit(source, control, target)
        return FittedRegulator(cls(inner.regulator, 0.5, [], torch.zeros(()), None), inner.accuracy)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return self.of(t, forward_pass) ** self.power + self.offset  # type: ignore


HERE = {name: f"{kind.__module__}:{kind.__name__}" for name, kind in dsas.REGULATORS.items()}
KINDS = Registry("dsas.regulators", "dsas:Regulator", {**HERE, "softened": "test_serialization:Softened"})


def through_json(method: Fitted, registry: Any, path: str = "0.part") -> Fitted:
    tensors: dict[str, Tensor] = {}
    packed = json.loads(json.dumps(pack(method, path, tensors)))
    assert all(name.startswith(f"{path}.") for name in tensors)
    return unpack(registry, packed, path, tensors)


@pytest.mark.parametrize("name", dsas.TRANSFORMS)
def test_every_transform_comes_back_to_the_bit(name: str) -> None:
    method = dsas.TRANSFORMS[name].fit(torch.randn(12, DIM) + 1, torch.randn(9, DIM))
    again = through_json(method, dsas.TRANSFORMS)
    assert same(again, method)
    t = torch.randn(2, 3, DIM)
    assert torch.equal(again(t), method(t))


@pytest.mark.parametrize("name", [name for name in dsas.REGULATORS if name not in ("product", "per-step", "clean")])
def test_every_regulator_comes_back_to_the_bit(name: str) -> None:
    method = dsas.REGULATORS[name].fit(torch.randn(12, DIM) + 1, torch.randn(9, DIM), torch.randn(9, DIM)).regulator
    assert same(through_json(method, dsas.REGULATORS), method)


def logistic(seed: int) -> dsas.Logistic:
    generator = torch.Generator().manual_seed(seed)
    return dsas.Logistic(torch.randn(DIM, generator=generator), torch.tensor(float(seed)))


def test_a_method_that_wraps_one_method_comes_back_with_it_and_with_every_plain_argument() -> None:
    inner = dsas.Product([logistic(1), dsas.Schedule("prompt", 1, 4)])
    method = Softened(inner, 0.25, ["a", "b"], torch.tensor(0.125), None)
    again = through_json(method, KINDS)
    assert same(again, method)
    assert isinstance(again, Softened)
    assert (again.power, again.notes, again.end) == (0.25, ["a", "b"], None)
    t = torch.randn(2, 5, DIM)
    assert torch.equal(again(t, ForwardPass(2, 5)), method(t, ForwardPass(2, 5)))


def test_methods_in_lists_keep_their_order_beyond_ten() -> None:
    method = dsas.Product([logistic(seed) for seed in range(12)])
    again = through_json(method, dsas.REGULATORS)
    assert [float(factor.bias) for factor in again.factors] == list(range(12))  # type: ignore


def test_a_path_that_begins_like_another_takes_none_of_its_tensors() -> None:
    tensors: dict[str, Tensor] = {}
    packed = {path: pack(logistic(seed), path, tensors) for seed, path in enumerate(("1.a", "11.a", "1.ab"))}
    for seed, path in enumerate(packed):
        assert same(unpack(dsas.REGULATORS, packed[path], path, tensors), logistic(seed))


def test_the_form_on_disk_is_the_one_that_is_documented() -> None:
    tensors: dict[str, Tensor] = {}
    packed = pack(dsas.Product([logistic(0), dsas.Constant(0.5)]), "3.regulator", tensors)
    assert packed == {
        "name": "product",
        "arguments": {},
        "parts": {
            "factors": [{"name": "logistic", "arguments": {}}, {"name": "constant", "arguments": {"value": 0.5}}]
        },
    }
    assert sorted(tensors) == ["3.regulator.factors.0.bias", "3.regulator.factors.0.theta"]


class Code(dsas.Regulator):
    """Says that it holds code."""

    name: ClassVar[str] = "code"
    stored: ClassVar[bool] = False
    fit = dsas.Constant.fit

    def __init__(self) -> None:
        super().__init__()

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        return torch.ones(*t.shape[:2], 1)


@pytest.mark.parametrize("method", [Code(), dsas.Product([dsas.Constant(), Code()])], ids=["itself", "in another"])
def test_code_is_refused_wherever_it_hides(method: Fitted) -> None:
    with pytest.raises(OptionError, match=r"^Code\(\) holds code, which is not written to files: make it a subclass"):
        pack(method, "0", {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda packed, tensors: packed.update(name="logistics"), "unknown method 'logistics'; closest: 'logistic'"),
        (lambda packed, tensors: tensors.pop("0.theta"), r"'logistic' is stored with \['bias'\], but it needs"),
        (lambda packed, tensors: packed["arguments"].update(power=2), r"stored with \['bias', 'power', 'theta'\]"),
        (
            lambda packed, tensors: tensors.update({"0.extra": torch.ones(1)}),
            r"stored with \['bias', 'extra', 'theta'\]",
        ),
    ],
    ids=["name", "tensor gone", "argument more", "tensor more"],
)
def test_what_is_not_what_the_method_is_made_of_is_refused(change: Any, message: str) -> None:
    tensors: dict[str, Tensor] = {}
    packed = pack(logistic(0), "0", tensors)
    change(packed, tensors)
    with pytest.raises(ArtifactError, match=message):
        unpack(dsas.REGULATORS, packed, "0", tensors)


def test_methods_are_the_same_only_if_class_and_every_bit_of_every_argument_are() -> None:
    one = dsas.Product([logistic(0), dsas.Constant(0.5)])
    assert same(one, dsas.Product([logistic(0), dsas.Constant(0.5)]))
    for other in (
        dsas.Product([logistic(0), dsas.Constant(0.25)]),
        dsas.Product([logistic(1), dsas.Constant(0.5)]),
        dsas.Product([dsas.Constant(0.5), logistic(0)]),
        dsas.Product([logistic(0), dsas.Constant(0.5), dsas.Constant(1.0)]),
        logistic(0),
    ):
        assert not same(one, other)
    vector = torch.randn(DIM)
    assert not same(dsas.Addition(vector), dsas.PrincipalAddition(vector))
