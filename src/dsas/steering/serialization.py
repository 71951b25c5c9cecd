"""Serialization: a method as JSON and named tensors, and back; this is how transforms and regulators are stored.

    {"name": "logistic", "arguments": {...}, "parts": {"factors": [...]}}

Plain arguments are stored unchanged; an argument that is a method, or a list of methods, goes under "parts".

Tensors are named by their path, such as "3.regulator.factors.0.theta". Names are looked up in the registries, so a file
cannot cause anything to be imported.
"""

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

from torch import Tensor

from dsas.errors import ArtifactError, OptionError, closest
from dsas.files.json_values import Json, JsonObject
from dsas.methods.base import Fitted
from dsas.methods.schema import check_arguments, check_fields

Method = TypeVar("Method", bound=Fitted)


class _Packed(NamedTuple):
    name: str
    arguments: JsonObject
    parts: dict[str, dict[str, Json] | list[Json]]


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
    registry: Mapping[str, type[Method]],
    packed: Json,
    path: str,
    tensors: Mapping[str, Tensor],
    sizes: dict[str, int] | None = None,
) -> Method:
    """Return the method that `pack` was given.

    sizes: the axes of methods already read at this site, as in `check_arguments`. Raises ArtifactError for an unknown
    name or wrong arguments, whatever a file may hold.
    """
    sizes = {} if sizes is None else sizes
    check_fields(_Packed, packed, path, optional=("parts",))
    kind = registry.get(packed["name"])
    if kind is None:
        raise ArtifactError(f"unknown method {packed['name']!r:.60}; closest: {closest(packed['name'], registry)}")
    own = {key.removeprefix(f"{path}."): value for key, value in tensors.items() if key.startswith(f"{path}.")}
    arguments = {**packed["arguments"], **{key: value for key, value in own.items() if "." not in key}}
    for key, parts in packed.get("parts", {}).items():
        if isinstance(parts, dict):
            arguments[key] = unpack(registry, parts, f"{path}.{key}", tensors, sizes)
            continue
        every = enumerate(parts)
        arguments[key] = [unpack(registry, part, f"{path}.{key}.{number}", tensors, sizes) for number, part in every]
    check_arguments(kind, arguments, sizes)
    try:
        return kind(**arguments)
    except Exception as error:  # the class may be another package's and raise anything
        raise ArtifactError(f"{path}: {packed['name']!r} cannot be made of what is stored: {error}") from error
