"""JSON that is printed can be read by every reader of JSON."""

import json
from typing import Any

import pytest

from dsas.files.json_values import json_text


def test_numbers_that_are_not_finite_become_null_wherever_they_stand() -> None:
    given = {"a": float("nan"), "b": [1.5, (float("inf"), {"c": -float("inf")})], "d": True, "e": None, "f": 10**400}
    expected = {"a": None, "b": [1.5, [None, {"c": None}]], "d": True, "e": None, "f": 10**400}
    assert json.loads(json_text(given), parse_constant=pytest.fail) == expected


@pytest.mark.parametrize("text", ["é", "\x1b", "\u202e", "\ud800"])
def test_it_is_ascii_and_means_the_same(text: Any) -> None:
    assert json_text(text).isascii()
    assert json_text(text).isprintable()
    assert json.loads(json_text(text)) == text
