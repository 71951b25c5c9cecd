"""Adding a method takes one file: fit and commands by name, laws, storage, and its row in the table follow from it."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from makers import golden, methods_table, pretend_installed

import dsas
from dsas import cli
from dsas.testing import check_regulator, check_steering, check_transform, tiny_model, tiny_tokenizer

TRANSFORM = '''
"""Shrinking towards the target: T(t) = t + share (mean_T - t)."""

from typing import ClassVar

from torch import Tensor

import dsas
from dsas.methods.base import Facts


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
'''
REGULATOR = '''
"""How long a token is, measured by the source's mean length: h(t) = |t| / length."""

from typing import ClassVar

from torch import Tensor

import dsas
from dsas.methods.base import Facts
from dsas.regulators.base import FittedRegulator
from dsas.model.forward_pass import ForwardPass


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
SETS = {
    name: [f"{start} {n}" for n in range(6)]
    for name, start in (("source", "SHUT UP"), ("control", "the door"), ("target", "shut up"))
}
ROWS = {
    "toy_shrink": "| `toy-shrink` | `Shrink` | t + share (mean_T - t) | nobody \\| nowhere | all else | 2 d |",
    "toy_loud": "| `toy-loud` | `Loud` | \\|t\\| / length | nobody | all else | 2 d |",
}


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that writes one file of an outside package, which declares the method in it."""
    files = {"toy_shrink": (TRANSFORM, "dsas.transforms", "Shrink"), "toy_loud": (REGULATOR, "dsas.regulators", "Loud")}

    def written(module: str) -> None:
        text, group, name = files[module]
        (tmp_path / f"{module}.py").write_text(text)
        monkeypatch.syspath_prepend(tmp_path)
        pretend_installed(monkeypatch, {group: [f"{module}:{name}"]})

    yield written
    for module in files:
        sys.modules.pop(module, None)


def fitted(transform: str, regulator: str) -> tuple[dsas.Steering, Any, Any]:
    model, tokenizer = tiny_model(layers=2), tiny_tokenizer()
    options = {"transform": transform, "regulator": regulator, "selection": "all", "progress": False}
    return dsas.fit(model, tokenizer, **SETS, **options), model, tokenizer


def rows_of_others() -> list[str]:
    return [line for line in methods_table().splitlines() if "toy-" in line]


def test_one_file_makes_a_transform_that_is_fitted_by_name_lawful_stored_and_in_the_table(
    tmp_path: Path, write: Any
) -> None:
    write("toy_shrink")
    steering, model, tokenizer = fitted("toy-shrink", "logistic")
    assert (steering.settings["transform"], steering.settings["regulator"]) == ("toy-shrink", "logistic")
    check_transform(dsas.TRANSFORMS["toy-shrink"])
    check_steering(steering, model, tokenizer)
    steering.save_pretrained(tmp_path / "steering")
    again = dsas.Steering.from_pretrained(tmp_path / "steering")
    assert again.digest() == steering.digest()
    t, transform = torch.randn(1, 3, len(steering.rules[0].transform.mean)), again.rules[0].transform
    torch.testing.assert_close(transform(t), 0.5 * t + 0.5 * transform.mean)
    assert rows_of_others() == [ROWS["toy_shrink"]]
    assert "toy-loud" not in dsas.REGULATORS


def test_one_file_makes_a_regulator_that_is_fitted_by_name_lawful_stored_and_in_the_table(
    tmp_path: Path, write: Any
) -> None:
    write("toy_loud")
    steering, model, tokenizer = fitted("caa", "logistic*toy-loud")
    assert (steering.settings["transform"], steering.settings["regulator"]) == ("caa", "logistic*toy-loud")
    check_regulator(dsas.REGULATORS["toy-loud"])
    check_steering(steering, model, tokenizer)
    steering.save_pretrained(tmp_path / "steering")
    again = dsas.Steering.from_pretrained(tmp_path / "steering")
    assert again.digest() == steering.digest()
    assert rows_of_others() == [ROWS["toy_loud"]]
    assert "toy-shrink" not in dsas.TRANSFORMS


@pytest.mark.parametrize(
    ("module", "transform", "regulator"), [("toy_shrink", "toy-shrink", "constant"), ("toy_loud", "caa", "toy-loud")]
)
def test_the_command_line_lists_a_method_of_one_file_and_fits_it_by_its_name(
    tmp_path: Path, write: Any, command: Any, module: str, transform: str, regulator: str
) -> None:
    write(module)
    names = [row["name"] for row in json.loads(command("methods", "--json"))]
    assert ("toy-shrink" in names, "toy-loud" in names) == (module == "toy_shrink", module == "toy_loud")
    tiny_model(layers=2).save_pretrained(tmp_path / "model")
    tiny_tokenizer().save_pretrained(tmp_path / "model")
    for name, texts in SETS.items():
        (tmp_path / f"{name}.txt").write_text("\n".join(texts))
    sets = [argument for name in SETS for argument in (f"--{name}", str(tmp_path / f"{name}.txt"))]
    methods = ["--transform", transform, "--regulator", regulator, "--selection", "all"]
    command("fit", str(tmp_path / "model"), *sets, *methods, "--out", str(tmp_path / "out"), "--json")
    stored = json.loads((tmp_path / "out" / "config.json").read_text())
    assert [stored["rules"][0][part]["name"] for part in ("transform", "regulator")] == [transform, regulator]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Return a function that runs a command, which must end well, and gives what it printed."""

    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["dsas", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        captured = capsys.readouterr()
        assert not ended.value.code, captured.err
        return captured.out

    return run


def test_without_the_file_the_names_mean_nothing() -> None:
    assert "toy-shrink" not in dsas.TRANSFORMS
    assert "toy-loud" not in dsas.REGULATORS
    assert rows_of_others() == []


def test_the_table_has_a_row_of_six_cells_for_every_method_in_the_order_of_the_registries() -> None:
    rows = [line for line in methods_table().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [*dsas.TRANSFORMS, *dsas.REGULATORS]
    for row in rows:
        assert row.replace("\\|", "").count("|") == 7
        assert all(cell.strip() for cell in row.replace("\\|", "").split("|")[1:-1])


# Names whose numbers are held to a reference of their own, by file under tests/.
REFERENCES = {
    "lineas": "transforms/test_lineas.py",
    "rectified": "regulators/test_rectified.py",
    "per-step": "regulators/test_perstep.py",
    "clean": "regulators/test_clean.py",
    "held": "regulators/test_held.py",
}
TESTS = Path(__file__).parents[1]


def without_golden_numbers(kind: str, methods: Any) -> list[str]:
    """Return the names of a registry that have no golden case, or one that no test holds the method to."""
    cases = {label.split(" ")[0] for label in golden()[kind]}
    tests = "".join(file.read_text() for file in sorted((TESTS / kind).glob("test_*.py")))
    called = f"check_golden_{kind.removesuffix('s')}(dsas."
    return [
        name
        for name, method in methods.items()
        if name not in REFERENCES and not (name in cases and f"{called}{method.__name__}," in tests)
    ]


def test_every_name_of_a_registry_is_held_to_golden_numbers_or_to_a_reference_of_its_own() -> None:
    assert without_golden_numbers("transforms", dsas.TRANSFORMS) == []
    assert without_golden_numbers("regulators", dsas.REGULATORS) == []


def test_the_list_of_references_names_methods_and_files_that_are_there() -> None:
    assert [file for file in REFERENCES.values() if not (TESTS / file).is_file()] == []
    assert [name for name in REFERENCES if name not in {*dsas.TRANSFORMS, *dsas.REGULATORS}] == []


@pytest.mark.parametrize(
    ("module", "kind", "name"), [("toy_shrink", "transforms", "toy-shrink"), ("toy_loud", "regulators", "toy-loud")]
)
def test_a_name_without_golden_numbers_is_found_out(write: Any, module: str, kind: str, name: str) -> None:
    write(module)
    registry: Any = dsas.TRANSFORMS if kind == "transforms" else dsas.REGULATORS
    assert without_golden_numbers(kind, registry) == [name]
