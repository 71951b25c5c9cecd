"""Adding a method takes one file: fit by name, the laws, storage, and its row in the table follow from it alone."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from makers import pretend_installed

import dsas
from dsas.fitting.method_names import methods_table
from dsas.testing import check_regulator, check_steering, check_transform, tiny_model, tiny_tokenizer

FILE = '''
"""Shrinking towards the target: T(t) = t + share (mean_T - t)."""

from typing import ClassVar

from torch import Tensor

import dsas
from dsas.methods.base import Facts
from dsas.regulators.base import FittedRegulator
from dsas.model.forward_pass import ForwardPass


class Shrink(dsas.Transform):
    """Takes every token a part of the way to the target's mean."""

    name: ClassVar[str] = "toy-shrink"
    facts: ClassVar[Facts] = Facts("t + share (mean_T - t)", "nobody | nowhere", "all else", "2 d")

    def __init__(self, mean: Tensor, share: float = 0.5) -> None:
        super().__init__()
        self.keep(mean=mean, share=share)

    @classmethod
    def fit(cls, source: Tensor, target: Tensor, *, share: float = 0.5) -> "Shrink":
        return cls(target.mean(0), share)

    def edit(self, t: Tensor) -> Tensor:
        return self.share * (self.mean - t)


class Loud(dsas.Regulator):
    """How long a token is, measured by the source's mean length."""

    name: ClassVar[str] = "toy-loud"
    facts: ClassVar[Facts] = Facts("|t| / length", "nobody", "all else", "2 d")

    def __init__(self, length: float) -> None:
        super().__init__()
        self.keep(length=length)

    @classmethod
    def fit(cls, source: Tensor, control: Tensor, target: Tensor) -> FittedRegulator:
        return FittedRegulator(cls(float(source.norm(dim=-1).mean())), accuracy=None)

    def forward(self, t: Tensor, forward_pass: ForwardPass) -> Tensor:
        wide = t if t.dtype.itemsize >= 4 else t.float()
        return (wide.square().sum(-1, keepdim=True) + 1e-6).sqrt() / self.length
'''
TEXTS = {name: [f"{start} {n}" for n in range(6)] for name, start in (("source", "SHUT UP"), ("control", "the door"))}


@pytest.fixture
def _written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_methods.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    pretend_installed(monkeypatch, {"dsas.transforms": ["toy_methods:Shrink"], "dsas.regulators": ["toy_methods:Loud"]})
    yield
    sys.modules.pop("toy_methods", None)


@pytest.mark.usefixtures("_written")
def test_one_file_makes_a_method_that_is_fitted_by_name_lawful_stored_and_in_the_table(tmp_path: Path) -> None:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    steering = dsas.fit(
        model, tokenizer, **TEXTS, target=[text.lower() for text in TEXTS["source"]],
        transform="toy-shrink", regulator="logistic*toy-loud", selection="all", progress=False,
    )  # fmt: skip
    assert (steering.settings["transform"], steering.settings["regulator"]) == ("toy-shrink", "logistic*toy-loud")
    check_transform(dsas.TRANSFORMS["toy-shrink"])
    check_regulator(dsas.REGULATORS["toy-loud"])
    check_steering(steering, model, tokenizer)

    steering.save_pretrained(tmp_path / "steering")
    again = dsas.Steering.from_pretrained(tmp_path / "steering")
    assert again.digest() == steering.digest()
    rule = again.rules[0]
    t = torch.randn(1, 3, len(rule.transform.mean))
    torch.testing.assert_close(rule.transform(t), 0.5 * t + 0.5 * rule.transform.mean)

    rows = [line for line in methods_table().splitlines() if "toy-" in line]
    assert rows == [
        "| `toy-shrink` | `Shrink` | t + share (mean_T - t) | nobody \\| nowhere | all else | 2 d |",
        "| `toy-loud` | `Loud` | \\|t\\| / length | nobody | all else | 2 d |",
    ]


def test_without_the_file_the_names_mean_nothing() -> None:
    assert "toy-shrink" not in dsas.TRANSFORMS
    assert "toy-" not in methods_table()


def test_the_table_has_a_row_of_six_cells_for_every_method_in_the_order_of_the_registries() -> None:
    rows = [line for line in methods_table().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [*dsas.TRANSFORMS, *dsas.REGULATORS]
    for row in rows:
        assert row.replace("\\|", "").count("|") == 7
        assert all(cell.strip() for cell in row.replace("\\|", "").split("|")[1:-1])
