"""The options of every command are those that are written down, their choices and defaults those of the library."""

import inspect
import json
from typing import Any, Literal, get_args, get_origin

import pytest
from make_options import FILE, options

import dsas
from dsas.calibration.budget import Damage
from dsas.cli import calibration, checks, choices, explanation, fitting, pareto, training
from dsas.demo.models import _SOURCES
from dsas.drafting.three_sets import OWN
from dsas.fitting.selection import SELECTIONS
from dsas.model.chat import PARTS
from dsas.model.examples import MINIMUM_TEXTS
from dsas.model.loading import PRECISIONS, SPREADS
from dsas.model.pipeline_modules import Branch
from dsas.model.reading import Tokens
from dsas.model.sites import SHORTHANDS
from dsas.sweep.jobs import PACKAGED
from dsas.sweep.run import STRENGTHS
from dsas.training.gradients import Start
from dsas.training.learning import LEARNED_FORMS
from dsas.training.plan import Optimiser

HOW = "if the change is meant, run `python tests/cli/make_options.py` and name it in CHANGELOG.md"


@pytest.mark.parametrize("command", options())
def test_the_options_of_a_command_are_those_that_are_written_down(command: str) -> None:
    stored = json.loads(FILE.read_text())
    assert options()[command] == stored[command], f"the options of `dsas {command}` have changed: {HOW}"


def test_the_commands_are_those_that_are_written_down() -> None:
    assert list(options()) == list(json.loads(FILE.read_text())), f"there are other commands than before: {HOW}"


LIBRARY = {
    "Branch": Branch,
    "DemoModel": _SOURCES,
    "LearnedForm": LEARNED_FORMS,
    "OptimiserName": inspect.get_annotations(Optimiser)["name"],
    "PerSite": inspect.get_annotations(dsas.calibrate)["per"],
    "PrecisionName": PRECISIONS,
    "WhichTokens": Tokens,
    "Selection": SELECTIONS,
    "DAMAGES": Damage,
    "DEVICES": ("auto", "cpu", "cuda", *SPREADS),
    "OWN_JUDGES": OWN,
    "PARTS": PARTS,
    "SCORERS": PACKAGED,
    "SITES": SHORTHANDS,
    "STARTS": get_args(get_args(Start)[0]),
}


def test_the_choices_of_the_command_line_are_those_of_the_library() -> None:
    written = {name: value for name, value in vars(choices).items() if name.isupper() or get_origin(value) is Literal}
    registries = {"TRANSFORMS", "REGULATORS", "OBJECTIVES"}
    assert {name: values(value) for name, value in written.items() if name not in registries} == {
        name: values(value) for name, value in LIBRARY.items()
    }
    assert list(STRENGTHS) == pareto.STRENGTHS
    assert checks.LEAST_TEXTS == MINIMUM_TEXTS


def values(of: Any) -> list[Any]:
    return list(get_args(of) if get_origin(of) is Literal else of)


@pytest.mark.parametrize(
    ("command", "function"),
    [
        (fitting.fit, dsas.fit),
        (training.train, dsas.train),
        (calibration.calibrate, dsas.calibrate),
    ],
)
def test_an_option_has_the_default_of_the_argument_of_that_name(command: Any, function: Any) -> None:
    options, arguments = inspect.signature(command).parameters, inspect.signature(function).parameters
    plain = (str, int, float, bool)
    compared = [name for name in options.keys() & arguments.keys() if isinstance(arguments[name].default, plain)]
    assert len(compared) >= 3
    for name in compared:
        given = options[name].default
        assert (given[0] if isinstance(given, list) else given) == arguments[name].default, name


def test_the_defaults_that_belong_together_in_the_library_are_those_of_the_options() -> None:
    fit, train = (inspect.signature(command).parameters for command in (fitting.fit, training.train))
    optimiser = dsas.Optimiser(*(train[name].default for name in ("optimiser", "rate", "regulator_rate")))
    read = (fit[name].default for name in ("batch_size", "max_tokens", "incremental"))
    reading = dsas.Reading(fit["tokens"].default, True, *read)
    assert (dsas.Threshold(fit["threshold"].default), dsas.Top(fit["top"].default)) == (dsas.Threshold(), dsas.Top())
    assert (optimiser, reading) == (dsas.Optimiser(), dsas.Reading())
    assert dsas.HeldOut(train["held_out"].default) == dsas.HeldOut()
    assert calibrated_by_default() == dsas.Budget("perplexity", 1.05)


def calibrated_by_default() -> dsas.Budget:
    (written,) = inspect.signature(calibration.calibrate).parameters["budget"].default
    return dsas.Budget(*calibration.budget_of(written))  # pyright: ignore[reportArgumentType]


def test_every_option_has_a_help_text_in_whole_words() -> None:
    for command in (explanation.explain, fitting.fit, training.train, pareto.pareto, calibration.calibrate):
        for name, parameter in inspect.signature(command).parameters.items():
            (about,) = parameter.annotation.__metadata__
            assert (about.help or "").strip().endswith("."), name
