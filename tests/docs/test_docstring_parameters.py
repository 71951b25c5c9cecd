"""Docstrings of the reference: sentences about parameters become a list, and nothing that is said gets lost."""

import importlib

import pytest

pytest.importorskip("griffe")
with_parameters = importlib.import_module("docstring_parameters").with_parameters


def test_sentences_that_begin_with_parameters_become_entries_and_others_stay() -> None:
    text = (
        "Do a thing.\n\nIt is done once. model: what is steered. source, control: texts, such as: these.\n"
        "Each is read.\nRaises TextsError, and more. Warns once."
    )
    assert with_parameters(text, {"model", "source", "control"}) == (
        "Do a thing.\n\nIt is done once.\n\nRaises TextsError, and more. Warns once.\n\n"
        "Args:\n    model: what is steered.\n"
        "    source: texts, such as: these. Each is read.\n    control: texts, such as: these. Each is read."
    )


def test_a_colon_after_a_word_that_is_no_parameter_is_a_colon() -> None:
    text = "Do a thing.\n\nOne rule: none is lost. model: what is steered."
    assert with_parameters(text, set()) == text
    assert with_parameters(text, {"model"}).startswith("Do a thing.\n\nOne rule: none is lost.\n\nArgs:")
