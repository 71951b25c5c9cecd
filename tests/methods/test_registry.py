"""Registry: methods of other packages by name; a broken package is reported and does no harm."""

import subprocess
import sys
import threading
import warnings
from importlib.metadata import EntryPoint
from typing import Any, ClassVar

import pytest
import torch
from makers import Position, pretend_installed
from torch import Tensor

import dsas
from dsas.errors import ArtifactError, DsasWarning, OptionError
from dsas.fitting import method_names as methods
from dsas.methods.base import Facts
from dsas.methods.registry import Registry
from dsas.steering.serialization import unpack
from dsas.testing import tiny_model, tiny_tokenizer

TEXTS = {name: [f"{start} {n}" for n in range(5)] for name, start in (("source", "SHUT UP"), ("control", "the door"))}
GROUP = "dsas.transforms"


class Shrink(dsas.Transform):
    """A transform of another package: T(t) = keep * t."""

    name: ClassVar[str] = "shrink"
    facts: ClassVar[Facts] = Facts("keep t", "-", "-", "d")

    def __init__(self, share: float = 0.5) -> None:
        super().__init__()
        self.keep(share=share)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor) -> "Shrink":
        return cls(float(target.norm(dim=-1).mean() / source.norm(dim=-1).mean()))

    def edit(self, t: Tensor) -> Tensor:
        return (self.share - 1) * t.float()  # type: ignore


class Nameless(dsas.Transform):
    fit = Shrink.fit
    edit = Shrink.edit


class Taken(Shrink):
    name: ClassVar[str] = "caa"


class NoTransform:
    name = "no-transform"


def test_a_transform_of_another_package_is_found_by_its_own_name_and_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, {"dsas.transforms": ["test_registry:Shrink"]})
    steering = dsas.fit(
        tiny_model(), tiny_tokenizer(), **TEXTS, target=TEXTS["control"], transform="shrink", progress=False
    )
    assert all(isinstance(rule.transform, Shrink) for rule in steering.rules)
    assert steering.settings["transform"] == "shrink"


def test_a_regulator_of_another_package_is_a_factor_of_products_too(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_installed(monkeypatch, {"dsas.regulators": ["makers:Position"]})
    fitted = methods.regulator_fit("constant*position")(*[torch.randn(4, 3)] * 3)
    assert isinstance(fitted.regulator.factors[1], Position)


def test_others_are_listed_after_those_that_are_here_and_offered_when_a_name_is_misspelt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = list(dsas.TRANSFORMS)
    pretend_installed(monkeypatch, {"dsas.transforms": ["test_registry:Shrink"]})
    assert len(dsas.TRANSFORMS) == len(here) + 1  # asked first, so that it must look for them itself
    assert list(dsas.TRANSFORMS) == [*here, "shrink"]
    with pytest.raises(OptionError, match="unknown transform 'shrnk'; closest: 'shrink'"):
        methods.transform_fit("shrnk")


@pytest.mark.parametrize("registry", [dsas.TRANSFORMS, dsas.REGULATORS])
def test_every_method_is_known_by_the_name_that_its_class_has(registry: Registry[Any]) -> None:
    assert {name: method.name for name, method in registry.items()} == {name: name for name in registry}


def test_listing_and_checking_names_imports_neither_methods_nor_torch() -> None:
    program = """
import sys
import threading
from dsas.regulators import REGULATORS, factors_of
from dsas.transforms import TRANSFORMS
assert list(TRANSFORMS)[0] == "caa" and "logistic" in REGULATORS and "logitsic" not in REGULATORS
TRANSFORMS.check("caa"), factors_of("logistic*cast")
assert "torch" not in sys.modules and "dsas.transforms.addition" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def registry(*methods: Any) -> Registry[dsas.Transform]:
    here = {method.name: f"{method.__module__}:{method.__name__}" for method in methods}
    return Registry(GROUP, "dsas.transforms.base:Transform", here)


def installed(monkeypatch: pytest.MonkeyPatch, *values: str) -> list[str]:
    """Pretend that these are declared in the group; return where every look at the entry points is noted."""
    looks: list[str] = []

    def entry_points(*, group: str) -> list[EntryPoint]:
        looks.append(group)
        return [EntryPoint(f"point-{number}", value, group) for number, value in enumerate(values)]

    monkeypatch.setattr("dsas.methods.registry.entry_points", entry_points)
    return looks


def test_nobody_is_asked_for_what_is_here_and_nobody_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = installed(monkeypatch, "test_registry:Shrink")
    found = registry(dsas.Addition)
    assert found["caa"] is dsas.Addition
    assert "caa" in found
    assert looks == []
    assert found["shrink"] is Shrink
    assert list(found) == ["caa", "shrink"]
    assert "absent" not in found
    assert looks == [GROUP]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("no_such_package.anywhere:Method", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("test_registry:Absent", "AttributeError: .*Absent"),
        ("test_registry:NoTransform", r"it is not a subclass of dsas\.Transform"),
        ("test_registry:TEXTS", r"it is not a subclass of dsas\.Transform"),
        ("makers:Position", r"it is not a subclass of dsas\.Transform"),
        ("test_registry:Nameless", "AttributeError: .*name"),
        ("test_registry:Taken", "the name 'caa' is taken by Addition"),
    ],
)
def test_a_broken_package_is_warned_of_by_name_and_the_others_are_still_found(
    monkeypatch: pytest.MonkeyPatch, value: str, problem: str
) -> None:
    installed(monkeypatch, value, "test_registry:Shrink")
    found = registry(dsas.Addition, dsas.Ablation)
    with pytest.warns(DsasWarning, match=rf"^{value} of '{GROUP}' is not used: {problem}"):
        assert found["shrink"] is Shrink
    assert list(found) == ["caa", "ablation", "shrink"]
    assert found["caa"] is dsas.Addition


def test_of_two_packages_with_one_name_the_first_is_used_and_the_second_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed(monkeypatch, "test_registry:Shrink", "test_registry:Shrink")
    with pytest.warns(DsasWarning, match="the name 'shrink' is taken by Shrink"):
        assert list(registry()) == ["shrink"]


def test_a_warning_that_is_an_error_keeps_no_other_method_away(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, "test_registry:NoTransform", "test_registry:Shrink")
    found = registry(dsas.Addition)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DsasWarning):
            list(found)
    assert list(found) == ["caa", "shrink"]


def test_a_stored_method_of_a_package_that_is_gone_is_refused_by_name() -> None:
    packed = {"name": "shrink", "arguments": {"share": 0.5}}
    with pytest.raises(ArtifactError, match="unknown method 'shrink'; closest: "):
        unpack(dsas.TRANSFORMS, packed, "0.transform", {})
    assert unpack(registry(Shrink), packed, "0.transform", {}).arguments() == {"share": 0.5}


def test_a_thread_that_asks_while_another_one_loads_the_packages_waits_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, go = threading.Event(), threading.Event()

    class Slow:
        value = "their_package:Shrink"

        def load(self) -> type[Shrink]:
            begun.set()
            go.wait(10)
            return Shrink

    monkeypatch.setattr("dsas.methods.registry.entry_points", lambda **_: [Slow()])
    registry = Registry(GROUP, "dsas.transforms.base:Transform", {})
    found: list[bool] = []
    first = threading.Thread(target=lambda: found.append("shrink" in registry))
    second = threading.Thread(target=lambda: found.append("shrink" in registry))
    first.start()
    begun.wait(10)
    second.start()
    second.join(0.1)
    go.set()
    first.join()
    second.join()
    assert found == [True, True]
