"""JSON values: the contents of a file or report, before and after they are text."""

import json
import math
from typing import Any

Json = Any  # numbers, strings, booleans, None, and lists and objects of them
JsonObject = dict[str, Json]


def json_text(value: Json) -> str:
    """Return a value as JSON that every reader accepts: ASCII, with null for numbers that are not finite."""
    return json.dumps(_finite(value), allow_nan=False)


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value
