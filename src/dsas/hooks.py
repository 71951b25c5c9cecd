"""Hooks: the only place that registers forward hooks, and the place that makes sure they come off.

`Hooks` is a context manager that owns any number of hooks on any number of modules; they come off together, on every
exit path. Code compiled by torch.compile does not see hooks that come or go later, so `Hooks` drops the compiled code
of the modules it touches (it is compiled again at the next call): steering is never ignored and never outlives itself.
"""

import sys
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle


class StopForward(Exception):
    """Raised inside a hook to end a forward pass early; whoever raises it also catches it."""


class Hooks:
    """Forward hooks that come off together.

    Use as a context manager, or call `remove` when done; removing twice is harmless.
    """

    def __init__(self, model: nn.Module) -> None:
        """Own hooks on modules of `model`; nothing is registered yet."""
        self._model = model
        self._handles: list[RemovableHandle] = []

    @property
    def active(self) -> bool:
        """Whether any hook is on."""
        return bool(self._handles)

    def on_output(self, module: nn.Module, change: Callable[[Any], Any]) -> None:
        """Call `change(output)` after every forward of `module`; what it returns, unless None, is the new output."""

        def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
            return change(output)

        self._add(module.register_forward_hook(hook))

    def on_call(self, module: nn.Module, look: Callable[[tuple[Any, ...], dict[str, Any]], object]) -> None:
        """Call `look(args, kwargs)` before every forward of `module`; what it returns is not used."""

        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            look(args, kwargs)

        self._add(module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        """Take every hook off."""
        if self._handles:
            forget_compiled(self._model)
        while self._handles:
            self._handles.pop().remove()

    def __enter__(self) -> "Hooks":
        return self

    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def _add(self, handle: RemovableHandle) -> None:
        if not self._handles:
            forget_compiled(self._model)
        self._handles.append(handle)


def forget_compiled(model: nn.Module) -> None:
    """Drop code that torch.compile has made for any module of `model`; it is compiled anew at the next call."""
    if "torch._dynamo" not in sys.modules:
        return
    from torch._dynamo import reset
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    kinds = {type(module) for module in model.modules()}
    if any(_debug_get_cache_entry_list(kind.forward.__code__) for kind in kinds if hasattr(kind.forward, "__code__")):
        reset()
