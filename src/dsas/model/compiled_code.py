"""Compiled code: how torch.compile notices that a module has changed since it was compiled.

Compiled code does not check whether a module that had no hooks has hooks now, but it does check whether `forward` is
among the module's own attributes. So while a module is changed, its bound `forward` is put there: older code no longer
matches and is compiled anew, or reused if it was compiled for the same change. All other compiled code of the process
stays, and nothing is freed that another thread may be running.

Source: `guard_to_detect_forward_monkeypatching` and `skip_nnmodule_hook_guards` in torch._dynamo.
"""

import sys
import threading
from collections.abc import Callable
from functools import partial
from types import MethodType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

import torch
from torch import nn

from dsas.errors import StateError
from dsas.model.foreign import Foreign

_MARKING = threading.RLock()


class _Mark(NamedTuple):
    """Who marked a module, and the attribute put there, held weakly so that the module can be freed."""

    by: frozenset[object]
    forward: "ref[Any]"


class _Instead(partial[Any]):
    """A function under another identity; `before` is the original, which may be a partial itself."""

    before: Foreign

    def __new__(cls, before: Foreign) -> "_Instead":
        made = super().__new__(cls, before)
        made.before = before
        return made


_marks: "WeakKeyDictionary[nn.Module, _Mark]" = WeakKeyDictionary()


def mark_changed(module: nn.Module, by: object) -> None:
    """Invalidate code that was compiled for `module` before, until everyone who marked it calls `unmark`.

    A `forward` that is set on the object while it is marked is kept.
    """
    with _MARKING:
        marked = _marks.get(module)
        if marked is None:
            before = vars(module).get("forward")
            # A method is guarded by its function, so code compiled for the same change matches again; a function by
            # itself.
            forward: Foreign = MethodType(type(module).forward, module) if before is None else _Instead(before)
            _marks[module] = marked = _Mark(frozenset(), ref(forward))
            vars(module)["forward"] = forward
        _marks[module] = marked._replace(by=marked.by | {by})


def unmark(module: nn.Module, by: object) -> None:
    """Remove a mark, if it is still there; removing the last one restores the attribute that was there."""
    with _MARKING:
        marked = _marks.get(module)
        if marked is None:
            return
        left = marked.by - {by}
        forward = vars(module).get("forward")
        if not left and forward is not None and forward is marked.forward():
            if isinstance(forward, _Instead):
                vars(module)["forward"] = forward.before
            else:
                del vars(module)["forward"]
        if left:
            _marks[module] = marked._replace(by=left)
        else:
            del _marks[module]


def set_class(module: nn.Module, kind: type[nn.Module]) -> None:
    """Change the class of `module` to `kind`, with the `forward` of that class, marked or not."""
    with _MARKING:
        forward, is_own = vars(module).get("forward"), has_own_forward(module)
        module.__class__ = kind
        if forward is None or is_own:
            return
        vars(module)["forward"] = bound = MethodType(kind.forward, module)
        if module in _marks:
            _marks[module] = _marks[module]._replace(forward=ref(bound))


def has_own_forward(module: nn.Module) -> bool:
    """Whether `forward` was replaced on the object itself, as quantisers do; marks and their copies do not count."""
    forward: Foreign = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile(module)` wrapped, or `model` itself when it is not such a wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def gives_way(function: Callable[..., Foreign], refusal: str) -> Callable[..., Foreign]:
    """Return a hook that no compiled graph contains: torch runs its module uncompiled, or raises with the refusal.

    If torch.compile is loaded, it also skips the function, which it would otherwise compile by itself, once per site.
    Calling it raises StateError while a graph is made.
    """
    plain = function
    if "torch._dynamo" in sys.modules:  # it takes seconds to load
        untraced: Foreign = torch.compiler.disable
        plain = untraced(function)

    def hook(*args: Foreign) -> Foreign:
        if torch.compiler.is_compiling():
            raise StateError(refusal)
        return plain(*args)

    return hook


def anything_compiled() -> bool:
    """Whether torch.compile has compiled anything in this process; compiled code does not say which models it calls."""
    if "torch._dynamo.convert_frame" not in sys.modules:
        return False
    from torch._dynamo.convert_frame import input_codes

    return bool(input_codes.seen)
