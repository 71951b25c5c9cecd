"""Compiled code: how torch.compile is told that a module is no longer what it was when code was made of it.

Compiled code does not look whether a module without hooks has hooks now, but it does look whether `forward` stands in
the module's own attributes. So while something is changed at a module, its bound `forward` stands there: code that was
made before does not fit any more and is made anew, or taken up again where it was made for the same change. All other
compiled code of the process stays, and nothing is freed that another thread may be running.

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
    """Who marked a module, and what stands there for it, held weakly so that the module can be freed."""

    by: frozenset[object]
    forward: "ref[Any]"


class _Instead(partial[Any]):
    """A function under another identity; `before` is what it was made of, also where that is a partial itself."""

    before: Foreign

    def __new__(cls, before: Foreign) -> "_Instead":
        made = super().__new__(cls, before)
        made.before = before
        return made


_marks: "WeakKeyDictionary[nn.Module, _Mark]" = WeakKeyDictionary()


def mark_changed(module: nn.Module, by: object) -> None:
    """Let code that was compiled before not stand for `module` any more, until `unmark` by all who marked it.

    A `forward` that somebody sets on the object while the mark is there is kept.
    """
    with _MARKING:
        marked = _marks.get(module)
        if marked is None:
            before = vars(module).get("forward")
            # The one is guarded by its function, so code made for the same change fits again; the other by itself.
            forward: Foreign = MethodType(type(module).forward, module) if before is None else _Instead(before)
            _marks[module] = marked = _Mark(frozenset(), ref(forward))
            vars(module)["forward"] = forward
        _marks[module] = marked._replace(by=marked.by | {by})


def unmark(module: nn.Module, by: object) -> None:
    """Take off a mark, which may be gone already; the last one gives the module back what stood there."""
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
    """Make `module` one of the class `kind`, whose `forward` it then has, marked or not."""
    with _MARKING:
        forward, is_own = vars(module).get("forward"), has_own_forward(module)
        module.__class__ = kind
        if forward is None or is_own:
            return
        vars(module)["forward"] = bound = MethodType(kind.forward, module)
        if module in _marks:
            _marks[module] = _marks[module]._replace(forward=ref(bound))


def has_own_forward(module: nn.Module) -> bool:
    """Whether `forward` was replaced on the object itself, as quantisers do it; marks and their copies are none."""
    forward: Foreign = vars(module).get("forward")
    return forward is not None and getattr(forward, "__func__", None) is not type(module).forward


def uncompiled(model: nn.Module) -> nn.Module:
    """Return the module that `torch.compile(module)` wrapped, or `model` itself when it is no such wrapper."""
    inner = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def gives_way(function: Callable[..., Foreign], refusal: str) -> Callable[..., Foreign]:
    """Return a hook that no compiled graph holds: torch then runs its module uncompiled, or says the refusal.

    Where torch.compile is loaded, it leaves the function alone, too, which it would compile by itself, once per site.
    Calling it raises StateError while a graph is made.
    """
    plain = function
    if "torch._dynamo" in sys.modules:  # which takes seconds to load
        untraced: Foreign = torch.compiler.disable
        plain = untraced(function)

    def hook(*args: Foreign) -> Foreign:
        if torch.compiler.is_compiling():
            raise StateError(refusal)
        return plain(*args)

    return hook


def anything_compiled() -> bool:
    """Whether torch.compile has made any code in this process; none of it says which models it calls."""
    if "torch._dynamo.convert_frame" not in sys.modules:
        return False
    from torch._dynamo.convert_frame import input_codes

    return bool(input_codes.seen)
