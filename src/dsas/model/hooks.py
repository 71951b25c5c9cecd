"""Hooks: the only place in dsas that registers forward hooks and makes sure that they come off.

`Hooks` is a context manager that owns any number of hooks on any number of modules; they come off together, on every
exit path. A hook runs before those of others (such as those with which transformers collects hidden states), so that
they see what the next module sees. A copy or pickle of a hooked model is a plain model, because nobody could remove the
hooks of a copy. Code compiled by torch.compile does not see hooks that come or go later, so every hooked module is
marked as changed (`dsas.model.compiled_code`): steering is never ignored and never outlives itself.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial, update_wrapper
from typing import Any, NamedTuple, cast
from weakref import ref

from torch import nn

from dsas.files.json_values import JsonObject
from dsas.model.compiled_code import anything_compiled, mark_changed, unmark
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.sites import Site
from dsas.parallel.interruption import Leaving, surely, to_the_end

_CHANGING = threading.RLock()  # held while hooks are added or removed, so that two threads never do so at once


class StopForward(Exception):
    """Raised inside a hook to end a forward pass early; whoever raises it also catches it."""


class Hooks(Leaving):
    """Forward hooks that come off together.

    Use as a context manager, or call `remove` when done; removing twice is harmless. How to remove each hook is noted
    before it is added, so that an interruption leaves none behind.
    """

    def __init__(self, *, steering: object = None) -> None:
        """Own no hooks yet. steering: the applied Steering that the hooks belong to, as `steering_at` returns it."""
        self._take_off: list[Callable[[], None]] = []
        self._steering = None if steering is None else ref(steering)  # the owner of these hooks

    @property
    def active(self) -> bool:
        """Whether any hook is on."""
        return bool(self._take_off)

    def on_output(
        self, module: nn.Module, change: Callable[[nn.Module, Arguments, Given], Given], joint: "Joint | None" = None
    ) -> None:
        """Call `change(module, args, output)` after every forward; what it returns, unless None, is the new output.

        joint: how it runs together with those before and after it, while they are there.
        """
        self._add(module, module.register_forward_hook, self._hook(change, joint), module._forward_hooks)

    def at_site(self, model: nn.Module, site: Site, change: Callable[[Given], Given]) -> None:
        """Call `change` with the site's activation; what it returns, unless None, replaces the activation."""
        module = model.get_submodule(site.path)
        if site.side == "input":
            self.on_input(module, change)
        else:
            self.on_output(module, lambda _module, _args, output: change(output))

    def on_input(self, module: nn.Module, change: Callable[[Given], Given]) -> None:
        """Call `change(input)` before every forward of `module`, on its first argument; None keeps it as it is."""

        def hook(_module: nn.Module, args: Arguments, kwargs: Options | None = None) -> Foreign:
            if kwargs is None:  # removed while another thread was about to call it
                return None
            name = "" if args else next(iter(kwargs), "")
            changed = change(args[0] if args else kwargs.get(name))
            if changed is None:
                return None
            return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, name: changed})

        self._before(module, hook)

    def on_call(self, module: nn.Module, look: Callable[[Arguments, JsonObject], object]) -> None:
        """Call `look(args, kwargs)` before every forward of `module`; what it returns is not used."""

        def hook(_module: nn.Module, args: Arguments, kwargs: Options | None = None) -> None:
            if kwargs is not None:  # otherwise removed while another thread was about to call it
                look(args, kwargs)

        self._before(module, hook)

    def on_result(self, owner: Foreign, name: str, look: Callable[[Given], object]) -> None:
        """Call `look(result)` after every call of the method `name` of an object."""
        self._watch(owner, name, results=look)

    def on_run(
        self, owner: Foreign, name: str, around: Callable[[Arguments, Options], AbstractContextManager[object]]
    ) -> None:
        """Run every call of the method `name` of an object inside the context `around(args, kwargs)`."""
        self._watch(owner, name, around=around)

    def _watch(self, owner: Foreign, name: str, **look: Callable[..., Foreign]) -> None:
        with _CHANGING:
            self._take_off.append(partial(_unwatch, owner, name, look))
            watched = vars(owner).get(name)
            if not isinstance(watched, _Watched):
                watched = _Watched(owner, name)
            watched.looks.append(look)

    def remove(self) -> bool:
        """Remove every hook. Returns whether compiled code may have run them, unobserved."""
        compiled = bool(self._take_off) and anything_compiled()
        to_the_end(self._remove)
        return compiled

    def _remove(self) -> None:
        with _CHANGING:
            while self._take_off:
                self._take_off[-1]()
                self._take_off.pop()

    def __enter__(self) -> "Hooks":
        self.entered()
        return self

    @surely
    def __exit__(self, *_exception: object) -> None:
        self.remove()

    def _hook(self, function: Callable[..., Foreign], joint: "Joint | None" = None) -> "_Hook":
        return _Hook(function) if self._steering is None else _SteeringHook(function, self._steering(), joint)

    def _before(self, module: nn.Module, hook: Callable[..., Foreign]) -> None:
        register = partial(module.register_forward_pre_hook, with_kwargs=True)
        self._add(module, register, self._hook(hook), module._forward_pre_hooks)

    def _add(self, module: nn.Module, register: Callable[..., object], hook: "_Hook", hooks: Any) -> None:
        with _CHANGING:
            self._take_off += [partial(unmark, module, self), partial(_unregister, module, hooks, hook)]
            mark_changed(module, self)
            if _joined(hooks, hook):
                return
            register(hook)
            for number in [number for number, other in hooks.copy().items() if not isinstance(other, _Hook)]:
                hooks.move_to_end(number)


class _Hook(partial[Any]):
    """A hook that a copied or unpickled module does not keep; it adds no Python call before its function."""

    def __reduce__(self) -> Arguments:
        return type(self), (_nothing,)


class _SteeringHook(_Hook):
    """A hook of an applied Steering, which is its second argument here and is not passed to its function."""

    steering: object
    joint: "Joint | None"

    def __new__(
        cls, function: Callable[..., Foreign], steering: object = None, joint: "Joint | None" = None
    ) -> "_SteeringHook":
        hook = super().__new__(cls, function)
        hook.steering, hook.joint = steering, joint
        return hook


class Joint(NamedTuple):
    """How a hook runs together with others that follow one another on a module.

    run: makes one function of the functions and parts of several, which does what they do in turn; hooks of the same
    `run` are joined. part: what it asks of this one.
    """

    run: Callable[[Sequence[Callable[..., Foreign]], Sequence[Any]], Callable[..., Foreign]]
    part: object


class _JointHook(_Hook):
    """Several hooks as one, in the place of the first of them."""

    members: "tuple[_SteeringHook, ...]"

    def __new__(cls, *members: "_SteeringHook") -> "_JointHook":
        joints = [member.joint for member in members if member.joint is not None]
        hook = super().__new__(cls, joints[0].run([one.func for one in members], [one.part for one in joints]))
        hook.members = members
        return hook

    def __reduce__(self) -> Arguments:
        return _Hook, (_nothing,)


class _Watched:
    """A watched method: it is among the object's own attributes while it is watched."""

    def __init__(self, owner: Foreign, name: str) -> None:
        self._method, self._owner, self._name = getattr(owner, name), owner, name
        self._own = name in vars(owner)
        self.looks: list[dict[str, Callable[..., Foreign]]] = []
        update_wrapper(self, self._method)
        vars(owner)[name] = self

    def __call__(self, *args: Given, **kwargs: Given) -> Foreign:
        looks = list(self.looks)
        with ExitStack() as stack:
            for look in looks:
                if "around" in look:
                    stack.enter_context(look["around"](args, kwargs))
            result = self._method(*args, **kwargs)
        for look in looks:
            if "results" in look:
                look["results"](result)
        return result

    def __reduce__(self) -> Arguments:
        """Give a copy of the object the unwatched method."""
        return (cast, (None, self._method)) if self._own else (getattr, (self._owner, self._name))

    def drop(self, look: dict[str, Callable[..., Foreign]]) -> None:
        self.looks = [other for other in self.looks if other is not look]
        if not self.looks:
            if self._own:
                vars(self._owner)[self._name] = self._method
            else:
                del vars(self._owner)[self._name]


def _unwatch(owner: Foreign, name: str, look: dict[str, Callable[..., Foreign]]) -> None:
    watched = vars(owner).get(name)
    if isinstance(watched, _Watched):
        watched.drop(look)


def _unregister(module: nn.Module, hooks: Any, hook: _Hook) -> None:
    """Take a hook off, whether or not it is on, as the handle does that torch gives for it."""
    for number, other in hooks.copy().items():
        left = [member for member in _members(other) if member is not hook]
        if isinstance(other, _JointHook) and left:
            hooks[number] = left[0] if len(left) == 1 else _JointHook(*left)
        elif other is hook:
            module._forward_pre_hooks_with_kwargs.pop(number, None)
            hooks.pop(number, None)


def _joined(hooks: Any, hook: "_Hook") -> bool:
    """Join a hook with the last one of ours that is there, and return whether the two are of the same `Joint.run`."""
    last = next((number for number, other in reversed(hooks.copy().items()) if isinstance(other, _Hook)), None)
    members = () if last is None else _members(hooks[last])
    if not members or not isinstance(hook, _SteeringHook) or hook.joint is None:
        return False
    joint = members[-1].joint
    if joint is None or joint.run is not hook.joint.run:
        return False
    hooks[last] = _JointHook(*members, hook)
    return True


def _members(hook: object) -> "tuple[_SteeringHook, ...]":
    """Return the hooks of Steerings that a hook stands for."""
    if isinstance(hook, _JointHook):
        return hook.members
    return (hook,) if isinstance(hook, _SteeringHook) else ()


def _nothing(*_arguments: Given) -> None:
    """Change nothing."""


def steering_at(model: nn.Module) -> dict[str, list[object]]:
    """Return what steers: the paths of the modules that carry hooks of applied Steerings, and which ones."""
    found: dict[str, list[object]] = {}
    for path, module in model.named_modules():
        hooks = (*module._forward_hooks.copy().values(), *module._forward_pre_hooks.copy().values())
        those = [member.steering for hook in hooks for member in _members(hook)]
        if those:
            found[path] = those
    return found
