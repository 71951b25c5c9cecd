"""What training minimises, one objective per file. `OBJECTIVES` is the registry that train and the CLI read."""

from collections.abc import Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from dsas.errors import OptionError, closest
from dsas.methods.registry import Registry

if TYPE_CHECKING:
    from dsas.training.objectives.base import Objective

OBJECTIVES: "Registry[Objective]" = Registry(
    "dsas.objectives",
    "dsas.training.objectives.base:Objective",
    {
        "lineas": "dsas.training.objectives.lineas:LinEAS",
        "e2e-dsas": "dsas.training.objectives.e2e:E2E",
        "preference": "dsas.training.objectives.preference:Preference",
        "imitate": "dsas.training.objectives.imitate:Imitate",
    },
)


def objective_named(name: str, options: Mapping[str, Any]) -> "Objective":
    """Return the objective of a name with these options. Raises OptionError for an unknown name or option."""
    OBJECTIVES.check(name)
    known = [field.name for field in fields(OBJECTIVES[name])]
    for option in options:
        if option not in known:
            raise OptionError(f"objective {name!r} has no option {option!r}; closest: {closest(option, known)}")
    return OBJECTIVES[name](**options)
