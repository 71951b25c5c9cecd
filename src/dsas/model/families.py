"""Families: which sites and functions work in each causal family of transformers, found with tiny models.

The table is `families.json`, which `benchmarks/families.py` writes beside docs/reference/families.md: how many sites
each shorthand names in four layers, and whether fit, apply, generate and explain do what plain hooks do.
"""

import json
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from dsas.files.json_values import JsonObject

CHECKED = ("fit", "apply", "generate", "explain")


class Family(NamedTuple):
    """A row of the table. sites: counts by shorthand. holds: "yes" or the difference, by what was checked."""

    sites: dict[str, str]
    holds: dict[str, str]
    transformers: str


def family_of(model_type: str) -> Family | None:
    """Return the row of a family by its name in configurations; None for one not in the table."""
    table = _table()
    row = table["families"].get(model_type)
    if row is None:
        return None
    cells = dict(zip(table["columns"], row, strict=True))
    holds = {name: cells.pop(name) for name in CHECKED}
    shorthands = table["columns"][: table["columns"].index("steered at")]
    return Family({name: cells[name] for name in shorthands}, holds, table["transformers"])


@cache
def _table() -> JsonObject:
    return json.loads(files("dsas.model").joinpath("families.json").read_text(encoding="utf-8"))
