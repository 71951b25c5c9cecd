"""JSON values: what a file or a report holds, before and after it is text."""

from typing import Any

Json = Any  # numbers, strings, booleans, None, and lists and objects of them
JsonObject = dict[str, Json]
