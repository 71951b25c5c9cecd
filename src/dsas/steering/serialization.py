"""Packing: a method as JSON and named tensors, and back; what a stored Steering holds of its transforms and regulators.

    {"name": "logistic", "arguments": {...}, "parts": {"factors": [...]}}

Plain arguments stand as they are; a method, or a list of methods, that is an argument is packed under "parts".

Tensors go by their path, such as "3.regulator.factors.0.theta". Names are looked up in the registries, so nothing is
imported because a file says so.
"""

import inspect
from collections.abc import Mapping
from typing import TypeVar

from torch import Tensor

from dsas.errors import ArtifactError, OptionError, closest
from dsas.files.json_values import Json, JsonObject
from dsas.methods.base import Fitted

Method = TypeVar("Method", bound=Fitted)


def pack(method: Fitted, path: str, tensors: dict[str, Tensor]) -> JsonObject:
    """Return a method as JSON-ready values, and put its tensors into `tensors` under names that begin with `path`.

    Raises OptionError for a method that holds code.
    """
    if not method.stored:
        raise OptionError(
            f"{method!r} holds code, which is not written to files: make it a subclass of dsas.Transform or "
            "dsas.Regulator, in a package that declares it as an entry point"
        )
    packed: JsonObject = {"name": method.name, "arguments": {}}
    for key, value in method.arguments().items():
        if isinstance(value, Tensor):
            tensors[f"{path}.{key}"] = value
        elif isinstance(value, list) and value and all(isinstance(item, Fitted) for item in value):
            parts = [pack(item, f"{path}.{key}.{number}", tensors) for number, item in enumerate(value)]
            packed.setdefault("parts", {})[key] = parts
        elif isinstance(value, Fitted):
            packed.setdefault("parts", {})[key] = pack(value, f"{path}.{key}", tensors)
        else:
            packed["arguments"][key] = value
    return packed


def unpack(
    registry: Mapping[str, type[Method]], packed: Mapping[str, Json], path: str, tensors: Mapping[str, Tensor]
) -> Method:
    """Return the method that `pack` was given. Raises ArtifactError for an unknown name or other arguments."""
    kind = registry.get(packed["name"])
    if kind is None:
        raise ArtifactError(f"unknown method {packed['name']!r}; closest: {closest(packed['name'], registry)}")
    own = {key.removeprefix(f"{path}."): value for key, value in tensors.items() if key.startswith(f"{path}.")}
    arguments = {**packed["arguments"], **{key: value for key, value in own.items() if "." not in key}}
    for key, parts in packed.get("parts", {}).items():
        if isinstance(parts, dict):
            arguments[key] = unpack(registry, parts, f"{path}.{key}", tensors)
            continue
        every = enumerate(parts)
        arguments[key] = [unpack(registry, part, f"{path}.{key}.{number}", tensors) for number, part in every]
    if set(arguments) != set(inspect.signature(kind).parameters):
        raise ArtifactError(f"{packed['name']!r} is stored with {sorted(arguments)}, which is not what it is made of")
    return kind(**arguments)
