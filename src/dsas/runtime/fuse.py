"""Fusion: a Steering made part of a model, in its weights where that is exact, as its modules otherwise.

    W (t + s (a t + c))       = (W (1 + s a)) t  + s W c               a linear layer that reads the site
    t + s (a t + c), t=Wx+b   = ((1 + s a) W) x  + (1 + s a) b + s c   one whose output it is
    r + W x + b + s c         = r + W x + (b + s c)                    one that is its last summand, and a = 0

for a constant regulator and one strength; everything is computed in float64 and rounded once to the weights' dtype.
`dsas.model.linear_layers` says which layers these are. Every other site's module gets a new class, derived from its
own, whose forward steers; its path, weights and hooks stay, and copies and pickles of the model keep the class.

Nothing is changed in place: the model gets new parameters, and `undo` restores the original objects.

Limitations: no strength per row, no sinks, no regulators that read positions, no traces; `Steering.apply` has them.
Modules between a site and the layer that it was folded into see the activation edited too early, or not yet.
"""

import functools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, StateError, StrengthError
from dsas.methods.affine_edit import AffineEdit
from dsas.model.compiled_code import has_own_forward, set_class, uncompiled
from dsas.model.foreign import Arguments, Foreign, Given, Options
from dsas.model.hooks import Hooks, steering_at
from dsas.model.linear_layers import Behind, behind, is_transposed
from dsas.model.sites import Site, labels
from dsas.model.strength import Strength
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.regulators.base import Regulator
from dsas.regulators.constant import Constant
from dsas.runtime.edit import edit_with, fused_edit, way_of
from dsas.runtime.merged import save_merged
from dsas.runtime.rule import Rule, strength_for
from dsas.transforms.base import Transform

_FUSED: "WeakKeyDictionary[nn.Module, dict[int, list[str]]]" = WeakKeyDictionary()  # keyed by the number of the fusion


class FusedSite(NamedTuple):
    """One line of `Fusion.report`: the site, how it was fused, into which modules, and why it was not folded.

    stored: whether the model's own `save_pretrained` and loading keep it. They drop a module that steers by itself
    (copies and pickles keep it), and a new bias of a layer that had none, because the model's config does not know of
    it; `Fusion.save_pretrained` keeps such a bias if the family has a flag for it.
    """

    site: str
    status: Literal["folded", "wrapped"]
    modules: tuple[str, ...]
    why: str
    stored: bool


class _Change(NamedTuple):
    """One changed attribute of a module, a parameter or its class, before and after."""

    module: nn.Module
    name: str
    before: Any
    now: Any

    def stands(self) -> bool:
        """Whether it has not been changed since."""
        old, now = self.before, self.now
        kept = not isinstance(old, Tensor) or (old.dtype, old.device) == (now.dtype, now.device)
        return getattr(self.module, self.name) is now and kept


class Fusion(Leaving):
    """A Steering fused into a model until `undo`; a context manager, too."""

    def __init__(self, rules: Sequence[Rule], model: nn.Module, strength: Strength) -> None:
        """Fuse at once; see `Steering.fuse`. On an error the model is left as it was."""
        value = strength_for(rules, strength)
        if value.ndim or value.requires_grad:
            raise StrengthError(f"fusing takes one number without gradient, got {strength!r:.60}; rows need apply()")
        self._strength, self._model = float(value), model
        self._rules = [rule for rule in rules if rule.weight > 0 and self._strength]
        self._changes: dict[tuple[int, str], _Change] = {}
        self._report: list[FusedSite] = []
        self._saving, self._merging, self._new = Hooks(), False, set[int]()  # layers that had no bias
        self._places = Counter(id(module) for _, module in model.named_modules(remove_duplicate=False))
        self._places.update(id(own) for _, own in model.named_parameters(remove_duplicate=False))
        for rule in self._rules:
            if rule.regulator.reads_forward_pass:
                raise OptionError(
                    f"{rule.regulator!r} at {rule.site} reads token positions: use apply() instead, or fit with "
                    "regulator='probe'"
                )
        try:
            for rule, name in zip(self._rules, labels([rule.site for rule in self._rules]), strict=True):
                self._report.append(self._fuse(rule, name))
            if any(not line.stored for line in self._report) and callable(getattr(model, "save_pretrained", None)):
                self._saving.on_run(model, "save_pretrained", self._warn)
            if self._report:
                _FUSED.setdefault(model, {})[id(self)] = [rule.site.path for rule in self._rules]
        except BaseException:
            to_the_end(self._undo)
            raise

    def report(self) -> list[FusedSite]:
        """Return one line per steered site, in the order of the model."""
        return list(self._report)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the fused model so that plain transformers loads it steered, with no trace of dsas (`runtime.merged`).

        Raises OptionError, naming the site and the reason, for an edit that is in no weight.
        """
        wrapped = [line for line in self._report if line.status == "wrapped"]
        if wrapped:
            raise OptionError(f"{wrapped[0].site} and {len(wrapped) - 1} more cannot be merged: {wrapped[0].why}")
        new, self._merging = [path for path, one in self._model.named_modules() if id(one) in self._new], True
        try:
            save_merged(self._model, new, folder)
        finally:
            self._merging = False

    def undo(self) -> None:
        """Restore the model. Undoing twice is harmless.

        Raises StateError, and changes nothing, when something else has changed the same modules since.
        """
        changed = [type(change.module).__name__ for change in self._changes.values() if not change.stands()]
        if changed:
            raise StateError(
                f"{len(changed)} modules, such as a {changed[0]}, were changed after fusing: undo that first (the "
                "latest fusion before the others)"
            )
        to_the_end(self._undo)

    def _undo(self) -> None:
        for change in self._changes.values():
            _put(change.module, change.name, change.before)
        self._changes.clear()
        self._saving.remove()
        _FUSED.get(self._model, {}).pop(id(self), None)

    def __enter__(self) -> "Fusion":
        self.entered()
        return self

    @surely
    def __exit__(self, *_exception: object) -> None:
        self.undo()

    @contextmanager
    def _warn(self, _args: Arguments, _kwargs: Options) -> Iterator[None]:
        """Warn of what saving the model will lose."""
        lost = [line.site for line in self._report if not line.stored]
        if not self._merging:
            warnings.warn(
                f"this model is fused with a Steering, of which {len(lost)} sites, such as {lost[0]}, are lost when it "
                "is loaded again; use the save_pretrained of what fuse() returns, or undo() and save the Steering, too",
                DsasWarning,
                stacklevel=5,
            )
        yield

    def _fuse(self, rule: Rule, name: str) -> FusedSite:
        factor = self._strength * rule.weight
        known, why = self._foldable(rule)
        change = fused_edit(rule.transform, rule.regulator, factor)
        if known is not None and change is not None:
            linears = [self._model.get_submodule(path) for path in known.linears]
            had = all(id(one) not in self._new and one._parameters["bias"] is not None for one in linears)
            self._new.update(id(one) for one in linears if not had)
            for one in linears:
                self._fold(one, change, known, rule.site)
            return FusedSite(name, "folded", known.linears, "", had)
        module = uncompiled(self._model.get_submodule(rule.site.path))
        if has_own_forward(module):
            raise StateError(f"the forward of {rule.site.path} was replaced on the object: use apply() instead")
        base = getattr(type(module), "_dsas_made", type(module))
        self._set(module, "__class__", _Made(base, rule.site, rule.transform, rule.regulator, factor).make())
        return FusedSite(name, "wrapped", (rule.site.path,), why, False)

    def _foldable(self, rule: Rule) -> tuple[Behind | None, str]:
        """Return the layers that a rule folds into, or why it does not."""
        if type(rule.regulator) is not Constant:
            return None, "its regulator looks at the token"
        change = fused_edit(rule.transform, rule.regulator)
        if change is None:
            return None, "its transform is not affine everywhere"
        known = behind(self._model, rule.site)
        if known is None:
            return None, "no linear layer is known to read or produce it"
        if known.kind == "sum" and change.slope is not None:
            return None, "it multiplies a sum to which the layer adds only a part"
        around, own = {*known.linears, *known.between}, rule.site
        others = [other.site for other in self._rules if other.site.path in around]
        # Another part of the same activation does not interfere.
        others = [one for one in others if (one.path, one.side, one.parts) != (own.path, own.side, own.parts)]
        if others:
            return None, f"{others[0]} is steered, too, between it and the layer"
        modules = [self._model.get_submodule(path) for path in around]
        if any(self._places[id(part)] > 1 for module in modules for part in (module, *module.parameters())):
            return None, "the layer that it would be folded into, or its weights, are used elsewhere, too"
        watched = [*modules, self._model.get_submodule(rule.site.path)] if known.kind == "input" else modules
        if any(module._forward_hooks or module._forward_pre_hooks for module in watched):
            return None, "there are hooks on a module between it and the layer"
        return known, ""

    def _fold(self, linear: nn.Module, change: AffineEdit, known: Behind, site: Site) -> None:
        weight, bias = linear.get_parameter("weight"), linear._parameters["bias"]
        matrix = weight.detach().double()  # (out, in)
        matrix = matrix.T if is_transposed(linear) else matrix
        scale = None if change.slope is None else 1 + change.slope.double().to(matrix.device)
        shift = change.offset.double().to(matrix.device)
        moved = matrix.new_zeros(len(matrix)) if bias is None else bias.detach().double()
        if known.kind == "input":
            width = matrix.shape[1] // site.parts
            own = slice(site.part * width, (site.part + 1) * width)
            moved = moved + matrix[:, own] @ shift
            if scale is not None:
                matrix = matrix.clone()
                matrix[:, own] *= scale
        else:
            moved = shift + (moved if scale is None else moved * scale)
            matrix = matrix if scale is None else matrix * scale[:, None]
        if scale is not None:
            matrix = matrix.T.contiguous() if is_transposed(linear) else matrix
            self._set(linear, "weight", nn.Parameter(matrix.to(weight.dtype), requires_grad=weight.requires_grad))
        self._set(linear, "bias", nn.Parameter(moved.to(weight.dtype), requires_grad=False))

    def _set(self, module: nn.Module, name: str, value: Foreign) -> None:
        key = (id(module), name)
        before = self._changes[key].before if key in self._changes else getattr(module, name)
        self._changes[key] = _Change(module, name, before, value)
        _put(module, name, value)


def _put(module: nn.Module, name: str, value: Any) -> None:
    if name == "__class__":
        set_class(module, value)
    else:
        setattr(module, name, value)


class _Made(NamedTuple):
    """The ingredients of the class of a module that steers by itself, from which copies and pickles rebuild it."""

    base: "type[nn.Module] | _Made"
    site: Site
    transform: Transform
    regulator: Regulator
    factor: float

    def make(self) -> type[nn.Module]:
        """Return a class like `base`, under the same name, whose forward steers its input or output."""
        base = self.base.make() if isinstance(self.base, _Made) else self.base
        site = self.site
        way = way_of(self.transform, self.regulator, torch.tensor(self.factor), skip_sinks=False, detail=False)

        def edit(given: Given) -> Foreign:
            return site.write(given, edit_with(way, site.read(given), None).t)

        def output(self: nn.Module, *args: Given, **kwargs: Given) -> Foreign:
            return edit(base.forward(self, *args, **kwargs))

        def taken(self: nn.Module, *args: Given, **kwargs: Given) -> Foreign:
            if args:
                return base.forward(self, edit(args[0]), *args[1:], **kwargs)
            name = next(iter(kwargs))
            return base.forward(self, **{**kwargs, name: edit(kwargs[name])})

        def reduced(module: nn.Module, _protocol: object) -> Arguments:
            return _remade, (self,), module.__dict__

        forward = functools.wraps(base.forward)(output if site.side == "output" else taken)
        names = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__}
        return type(base.__name__, (base,), {"forward": forward, "__reduce_ex__": reduced, "_dsas_made": self, **names})


def _remade(made: _Made) -> nn.Module:
    kind = made.make()
    return kind.__new__(kind)


def check_unsteered(model: nn.Module, purpose: str) -> list[str]:
    """Return the paths of the modules at which a Steering is currently applied or fused, and warn if there are any."""
    fused = [path for paths in _FUSED.get(model, {}).values() for path in paths]
    found = list(dict.fromkeys([*steering_at(model), *fused]))
    if found:
        warnings.warn(
            f"a Steering is applied to this model at {len(found)} modules, so its activations are steered; leave it "
            f"before {purpose}, unless that is intended",
            DsasWarning,
            stacklevel=4,
        )
    return found
