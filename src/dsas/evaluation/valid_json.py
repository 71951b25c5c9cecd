"""Valid JSON: which share of answers to requests for JSON can be read as JSON?

An answer counts as valid when it is one JSON value, in a Markdown code fence or not. NaN and Infinity, which JSON does
not have, are not accepted; nor is text before or after the value.

`json_requests` are 20 requests for a small object of stated keys. An answer is also checked for these keys.

Limitations: whether the values are true is not checked.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dsas.errors import TextsError

_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL | re.IGNORECASE)
_ASKED = (
    ("a city in Europe", ("city", "country")),
    ("a fruit", ("name", "colour")),
    ("a book", ("title", "author")),
    ("a planet", ("name", "moons")),
    ("a bird", ("name", "can_fly")),
    ("a river", ("name", "length_km")),
    ("a musical instrument", ("name", "strings")),
    ("a tree", ("name", "evergreen")),
    ("a sport", ("name", "players")),
    ("a vegetable", ("name", "season")),
    ("a mountain", ("name", "height_m")),
    ("a language", ("name", "speakers")),
    ("a tool", ("name", "used_for")),
    ("a holiday", ("name", "month")),
    ("a drink", ("name", "hot")),
    ("a vehicle", ("name", "wheels")),
    ("a metal", ("name", "symbol")),
    ("an ocean", ("name", "depth_m")),
    ("a job", ("title", "workplace")),
    ("a flower", ("name", "colour")),
)


class JsonRequest(NamedTuple):
    """A request for an object of stated keys."""

    text: str
    keys: tuple[str, ...]


def json_requests() -> list[JsonRequest]:
    """Return the 20 requests."""
    wanted = [(thing, keys, " and ".join(f'"{key}"' for key in keys)) for thing, keys in _ASKED]
    return [
        JsonRequest(f"Describe {thing} as one JSON object with the keys {said}. Answer with JSON only.", keys)
        for thing, keys, said in wanted
    ]


def is_json(answer: str, keys: Sequence[str] = ()) -> bool:
    """Return whether an answer is one JSON value, and an object with these keys where some are given."""
    fenced = _FENCE.fullmatch(answer)
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return not keys or (isinstance(value, dict) and set(keys) <= set(value))


def valid_json(answers: Sequence[str]) -> Bool[np.ndarray, " answer"]:
    """Return for each answer whether it is JSON; the mean is the share. Raises TextsError unless given a list."""
    if isinstance(answers, str) or not answers:
        raise TextsError("expected a list of at least one answer")
    return np.array([is_json(answer) for answer in answers])


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
