"""methods.json is what make_methods.py makes; numbers from another BLAS may differ in the last digits."""

import json
from typing import Any

import pytest
from make_methods import FILE, make


def flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return every leaf of nested JSON by its path."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: leaf for name, inner in items for key, leaf in flat(inner, f"{path}/{name}").items()}
    return {path: value}


def test_the_golden_numbers_are_those_that_the_reference_makes() -> None:
    stored, made = flat(json.loads(FILE.read_text())), flat(json.loads(json.dumps(make())))
    assert stored.keys() == made.keys()
    different = {
        key: (stored[key], value) for key, value in made.items() if stored[key] != pytest.approx(value, abs=1e-7)
    }
    assert not different
