"""Schema: what stored values may be, read from the annotations of the class that is built from them.

    theta: Float[Tensor, " dim"]    a float32 tensor; "dim" is the width of the site, one number in all of a rule
    bias: Float[Tensor, ""]         one float32 number
    prior: float                    a finite number; also int, bool, str, Literal, sequences, mappings and unions

An annotation of another kind, as in other packages, allows whatever the constructor accepts.
"""

import inspect
import math
import types
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from jaxtyping import AbstractArray
from torch import Tensor

from dsas.errors import ArtifactError
from dsas.methods.base import Fitted

WIDTH = "dim"
LARGEST = 2**31  # the largest whole number: positions, tokens and parts are fewer


def check_arguments(kind: type[Fitted], arguments: Mapping[str, Any], sizes: dict[str, int]) -> None:
    """Raise ArtifactError, naming the argument, unless a method of this class can be made from these.

    sizes: the size of each named axis; names met for the first time are added, so that several methods of one site are
    checked against each other.
    """
    expected = {name: parameter.annotation for name, parameter in inspect.signature(kind).parameters.items()}
    if set(arguments) != set(expected):
        made = f"but it needs {sorted(expected)}"
        raise ArtifactError(f"{kind.name!r} is stored with {sorted(arguments)}, {made}")
    for name, wanted in expected.items():
        if _is_array(wanted):
            _check_tensor(f"{kind.name}.{name}", arguments[name], wanted.dim_str.split(), sizes)
        else:
            _check_value(f"{kind.name}.{name}", arguments[name], wanted)


def check_fields(kind: type, given: Any, where: str, optional: Sequence[str] = ()) -> None:
    """Raise ArtifactError, naming the field, unless a dataclass or named tuple can be made of a JSON object.

    where: what the object belongs to, for the message. optional: fields that may be left out.
    """
    expected = get_type_hints(kind)
    if not isinstance(given, dict):
        raise ArtifactError(f"{where}: expected an object with {sorted(expected)}, got {given!r:.60}")
    wrong = sorted(map(str, set(expected) ^ {*given, *optional}))
    if wrong:
        raise ArtifactError(f"{where} lacks or misnames a field: {', '.join(map(repr, wrong))}")
    for name, value in given.items():
        _check_value(f"{where}.{name}", value, expected[name])


def width_of(*methods: Fitted) -> int | None:
    """Return the width of the activations that methods are made for: the first one that their tensors give."""
    for one in (part for method in methods for part in method.modules() if isinstance(part, Fitted)):
        for name, parameter in inspect.signature(type(one)).parameters.items():
            value, wanted = getattr(one, name, None), parameter.annotation
            if _is_array(wanted) and isinstance(value, Tensor) and WIDTH in wanted.dim_str.split():
                return value.shape[wanted.dim_str.split().index(WIDTH)]
    return None


def _check_value(name: str, value: Any, wanted: Any) -> None:
    if not _fits(value, wanted):
        said = wanted if isinstance(wanted, str) else inspect.formatannotation(wanted)
        raise ArtifactError(f"{name}: expected {said}, got {value!r:.60}")


def _check_tensor(name: str, value: Any, axes: Sequence[str], sizes: dict[str, int]) -> None:
    wanted = "x".join(f"{axis}={sizes[axis]}" if axis in sizes else axis for axis in axes) or "scalar"
    if not isinstance(value, Tensor) or value.dtype != torch.float32:
        got = value.dtype if isinstance(value, Tensor) else f"{value!r:.60}"
        raise ArtifactError(f"{name}: expected a float32 tensor ({wanted}), got {got}")
    named = dict(zip(axes, value.shape, strict=False))
    if (
        value.ndim != len(axes)
        or not value.numel()
        or any(sizes.get(axis, size) != size for axis, size in named.items())
    ):
        raise ArtifactError(f"{name}: expected shape {wanted}, got {tuple(value.shape)}")
    sizes.update(named)


def _is_array(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, AbstractArray)


def _fits(value: Any, wanted: Any) -> bool:
    origin, parts = get_origin(wanted), get_args(wanted)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(type(value) is type(part) and value == part for part in parts)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(one, parts[1]) for one in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(_fits(one, parts[0]) for one in value)
    if wanted is float:
        return _fits(value, int) or (isinstance(value, float) and math.isfinite(value))  # torch takes either
    if wanted is int:
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
    if wanted is None or wanted is types.NoneType:
        return value is None
    if isinstance(wanted, type) and hasattr(wanted, "_fields"):  # a named tuple, whose fields its reader checks
        return isinstance(value, dict)
    return wanted in (Any, inspect.Parameter.empty) or not isinstance(wanted, type) or isinstance(value, wanted)
