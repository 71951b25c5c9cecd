"""Fitted: what transforms and regulators have in common: a module that its constructor arguments define completely.

Every constructor argument is kept unchanged as the attribute of the same name: a tensor as a buffer, a method (or a
list of them) as a submodule, anything else as a plain attribute. So storage, `repr` and equality need no code in the
methods themselves, and there is no way to write "not fitted yet".
"""

import copy
import inspect
from typing import Any, ClassVar, NamedTuple, TypeVar, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dsas.files.json_values import JsonObject

Method = TypeVar("Method", bound=nn.Module)
Samples = Float[Tensor, "_ dim"]  # pooled activations of a set, float32; sets differ in size


class Facts(NamedTuple):
    """What the table of methods says about a method.

    left_out: its limitations, and what of the paper it does not do. flops: per token and site, where d is the width of
    the site.
    """

    formula: str
    paper: str
    left_out: str
    flops: str


class Fitted(nn.Module):
    """A module that its constructor arguments rebuild exactly.

    Contract: `__init__` calls `super().__init__()`, then `keep(**arguments)` with every argument it takes: tensors are
    float32 buffers, methods are Fitted or lists of them, everything else is JSON (numbers, strings, booleans, lists of
    them). `name` identifies the class in the registry, in storage and on the command line; a class with `stored` False
    holds code, and is not written to files. `not_served`: why a server cannot do it, for a class without `served_form`
    (`dsas.methods.served_form`).
    """

    name: ClassVar[str]
    facts: ClassVar[Facts]
    stored: ClassVar[bool] = True
    not_served: ClassVar[str] = "its class has no method served_form"

    @final
    def keep(self, **arguments: Any) -> None:
        """Keep constructor arguments: tensors as buffers, methods as submodules, everything else as attributes."""
        for key, value in arguments.items():
            if isinstance(value, Tensor):
                self.register_buffer(key, value)
            elif _is_list_of_methods(value):
                setattr(self, key, nn.ModuleList(value))
            else:
                setattr(self, key, value)

    @final
    def arguments(self) -> JsonObject:
        """Return the constructor arguments; `type(self)(**self.arguments())` is an equal object."""
        found = {key: getattr(self, key) for key in inspect.signature(type(self)).parameters}
        return {key: list(value) if isinstance(value, nn.ModuleList) else value for key, value in found.items()}

    @final
    def __repr__(self) -> str:
        shown = {
            key: f"<tensor {'x'.join(map(str, value.shape)) or 'scalar'}>" if isinstance(value, Tensor) else repr(value)
            for key, value in self.arguments().items()
        }
        return f"{type(self).__name__}({', '.join(f'{key}={value}' for key, value in shown.items())})"


def _is_list_of_methods(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(item, Fitted) for item in value)


def same(first: Fitted, second: Fitted) -> bool:
    """Whether two methods have the same class and the same arguments, to the bit."""
    if type(first) is not type(second):
        return False
    return all(_equal(value, second.arguments()[key]) for key, value in first.arguments().items())


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return isinstance(second, Tensor) and torch.equal(first, second)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(_equal, first, second))
    return same(first, second) if isinstance(first, Fitted) else first == second


def moved(method: Method, device: torch.device) -> Method:
    """Return the method with its tensors on a device: itself if they are there already, else a copy."""
    tensors = [*method.parameters(), *method.buffers()]
    return method if all(value.device == device for value in tensors) else copy.deepcopy(method).to(device)
