"""Editing: what a rule does to one activation, in the fastest way that its methods allow.

An affine transform with a constant or logistic regulator takes the fused way (`dsas.methods.affine_edit`): strength and
constant are folded into the vectors once, so a site takes three kernel launches (one without a regulator; one more with
a slope, two more in bfloat16) and keeps at most 2 dim new numbers. The evidence regulator adds the launches of its
sums. Everything else, and every rule whose numbers need gradients, takes the general way: regulator, transform, sum.

Limitations: supports and rectified regulators take the general way, because folding the strength rounds differently.
"""

from collections.abc import Callable, Sequence, Sized
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import is_autocast_enabled as autocasts

from dsas.methods.affine_edit import AffineEdit, Step, prepared
from dsas.methods.base import moved
from dsas.model.foreign import Arguments, Foreign, Given
from dsas.model.forward_pass import ForwardPass
from dsas.model.strength import per_row
from dsas.regulators.base import Regulator
from dsas.regulators.constant import Constant
from dsas.regulators.evidence import Evidence
from dsas.regulators.linear import LinearRegulator
from dsas.regulators.probe import Probe
from dsas.runtime.edited import Edited
from dsas.runtime.summing import Summing
from dsas.transforms.affine import AffineTransform, steer
from dsas.transforms.base import Transform


def affine_edit(transform: Transform, regulator: Regulator, factor: float = 1.0) -> AffineEdit | None:
    """Return a rule as an affine edit, with `factor` and a constant regulator folded in, or None if it has none."""
    if not isinstance(transform, AffineTransform) or not isinstance(regulator, (Constant, LinearRegulator)):
        return None
    edit = transform.coefficients()
    if isinstance(regulator, LinearRegulator):
        edit = edit._replace(theta=regulator.theta[None], bias=regulator.bias.view(1), form=regulator.form)
    else:
        factor *= regulator.value
    if factor != 1.0:
        slope = None if edit.slope is None else edit.slope * factor
        edit = edit._replace(slope=slope, offset=edit.offset * factor, factor=factor)
    return edit


def fused_edit(transform: Transform, regulator: Regulator, factor: float = 1.0) -> AffineEdit | None:
    """Return the affine edit for the fused way, or None if only the general way works.

    For evidence, its theta and bias give the scores that are added up.
    """
    if isinstance(regulator, Evidence):
        edit = affine_edit(transform, Probe(regulator.theta, regulator.bias), factor)
    else:
        edit = affine_edit(transform, regulator, factor)
    if edit is None or edit.low is not None or edit.form != "sigmoid":
        return None
    if type(transform).edit is not AffineTransform.edit:
        return None
    learned = any(isinstance(value, Tensor) and value.requires_grad for value in edit)
    return None if learned else edit


def way_of(
    transform: Transform, regulator: Regulator, strengths: Float[Tensor, "*row"], *, skip_sinks: bool, detail: bool
) -> "Fused | Summing | General":
    """Return the fastest way to edit with these methods; detail: whether to keep the regulator's own values."""
    if not (skip_sinks or detail or strengths.requires_grad):
        alike = bool((strengths == strengths.flatten()[0]).all())
        shared = float(strengths.flatten()[0]) if alike else 1.0
        edit = fused_edit(transform, regulator, shared)
        if edit is not None and isinstance(regulator, Evidence):
            return Summing(edit, regulator, strengths if strengths.ndim else None, alike)
        if edit is not None:
            return Fused(edit, strengths if strengths.ndim else None, alike)
    return General(transform, regulator, strengths, skip_sinks)


def edit_with(
    way: "Fused | Summing | General", t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass | None
) -> Edited:
    """Return the result of a way on `t`, in its own precision, regardless of autocast."""
    kind = t.device.type
    if not autocasts(kind):
        return way(t, forward_pass)
    with torch.autocast(kind, enabled=False):
        return way(t, forward_pass)


def shortened(
    ways: Sequence["Way | None"],
    number: int,
    record: Callable[[float, Tensor | None], None] | None,
    asks: Sized,
    acts: Callable[[], bool],
    change: Callable[[Given], Given],
    running: Callable[[], ForwardPass | None],
) -> Callable[[nn.Module, Arguments, Given], Given]:
    """Return a forward hook equivalent to `change` on an output, with less Python from the second pass on.

    It takes the way that `ways[number]` holds when it is called. The first plain activation fixes dtype and device; any
    other goes through `change` again, and so does compiled code. record: called with the way's factor and each token's
    gain relative to it, None for 1. acts: whether the running pass is steered, called while `asks` is not empty.
    running: the pass that is running in this thread.
    """
    # Way, dtype, device, its kind, rows and the prepared step are one tuple, so that another thread sees all or none.
    ready: Any = (None, None, None, None, None, None)

    def hook(_module: nn.Module, _args: Arguments, output: Given) -> Foreign:
        nonlocal ready
        if torch.compiler.is_compiling():  # values kept here would become part of the graph
            return change(output)
        made, dtype, device, kind, rows, step = ready
        plain = type(output) is Tensor and output.ndim == 3
        way = ways[number]
        fits = plain and way is made and output.dtype is dtype and output.device == device and not autocasts(kind)
        if fits and (rows is None or rows == _rows(output, running())):
            if asks and not acts():
                return None
            steered, gain = step(output)
            if record is not None:
                record(made.factor, gain)
            return steered
        changed = change(output)
        if plain and changed is not None and isinstance(way, Fused) and (way is not made or not way.same_for_all_rows):
            now = None if way.same_for_all_rows else running()
            rows = None if way.same_for_all_rows else _rows(output, now)
            if rows != 0:
                ready = way, output.dtype, output.device, output.device.type, rows, way.prepared(output, now)
        return changed

    return hook


def _rows(t: Tensor, forward_pass: ForwardPass | None) -> int:
    """Return how many rows an activation has, or 0 if they are not exactly the user's rows."""
    if forward_pass is None or forward_pass.packing is not None or forward_pass.rows is not None:
        return 0
    return len(t) if len(t) == forward_pass.batch else 0


class Fused:
    """The fused way. Strengths that differ between rows are not folded into the edit."""

    def __init__(self, edit: AffineEdit, rows: Float[Tensor, " row"] | None, alike: bool) -> None:
        """Edit with these numbers. rows: strengths, as given. alike: whether they are folded into the edit."""
        # Without the factor, which is folded into the other numbers: compiled code would treat it as a constant.
        self._edit, self._rows, self._alike = edit._replace(factor=1.0), rows, alike
        self.factor, self.same_for_all_rows = edit.factor, rows is None
        self._here: tuple[tuple[object, ...], Step] | None = None  # a kind of activation, and its step

    def __call__(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass | None) -> Edited:
        """Return the steered activation; only the mapping to the user's rows matters in the forward pass."""
        if torch.compiler.is_compiling():
            return Edited(*self.prepared(t, forward_pass)(t))
        here = self._here  # read once: another thread may replace it
        rows: tuple[object, ...] = ()
        if not self.same_for_all_rows:
            packing = None if forward_pass is None else forward_pass.packing
            copies = 1 if forward_pass is None else forward_pass.copies
            rows = len(t), copies, None if packing is None else packing.numbers
        kind = (t.device, t.dtype, *rows)
        if here is None or here[0] != kind:
            here = self._here = kind, self.prepared(t, forward_pass)
        return Edited(*here[1](t))

    @property
    def addition(self) -> AffineEdit | None:
        """The numbers of an edit that adds as much in every row; None of any other."""
        return self._edit if self._edit.is_addition and self.same_for_all_rows else None

    def applied(self, t: Float[Tensor, "batch token dim"], edited: Edited) -> Float[Tensor, "batch token 1"]:
        """Return strength x regulator of every token."""
        gain = edited.gain
        every = t.new_full((1, 1, 1), self.factor, dtype=torch.float32) if gain is None else gain * self.factor
        return every.expand(*t.shape[:2], 1)

    def prepared(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass | None = None) -> Step:
        """Return the function that edits activations with the dtype, device and, if strengths differ, rows of `t`."""
        wide, rows = torch.promote_types(t.dtype, self._edit.offset.dtype), None
        if self._rows is not None:
            each = per_row(self._rows, len(t)) if forward_pass is None else forward_pass.spread(self._rows)
            rows = None if self._alike else each.to(t.device, wide).view(-1, 1, 1)
        return prepared(self._edit.to(t.device, wide), t.dtype, rows)


class General:
    """The way for any transform with any regulator, including gradients of their numbers and of the strengths."""

    def __init__(
        self, transform: Transform, regulator: Regulator, strengths: Float[Tensor, "*row"], skip_sinks: bool
    ) -> None:
        """Edit with methods that stay where they are; they are copied to the activations' device at most once."""
        self._transform, self._regulator, self._skip_sinks = transform, regulator, skip_sinks
        self._strengths = strengths
        self._shared = float(strengths) if strengths.ndim == 0 and not strengths.requires_grad else None
        self._device: torch.device | None = None

    def __call__(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass | None) -> Edited:
        """Return the steered activation; without a forward pass, all tokens count as real and as the first."""
        transform, regulator = self._on(t.device)
        forward_pass = forward_pass or ForwardPass(*t.shape[:2], device=t.device)
        regulated = regulator(t, forward_pass)
        # For compiled code the strength is an input, and not a constant.
        by_row = self._strengths if self._strengths.ndim == 0 and torch.compiler.is_compiling() else self._shared
        if by_row is None:
            each = forward_pass.spread(self._strengths.reshape(-1))
            by_row = each.view(-1, 1, 1).to(t.device)
        gain = regulated * by_row
        if self._skip_sinks:
            gain = gain.masked_fill((forward_pass.positions == 0).unsqueeze(-1), 0.0)
        steered = steer(t, gain, transform)
        if regulator.reads_additions:
            wide = torch.promote_types(t.dtype, torch.float32)
            forward_pass.add(steered.to(wide) - t.to(wide))
        return Edited(steered, gain, regulated)

    def applied(self, t: Float[Tensor, "batch token dim"], edited: Edited) -> Float[Tensor, "batch token gain"]:
        """Return strength x regulator of every token."""
        assert edited.gain is not None  # this way always works it out
        return edited.gain

    def detail(self, t: Float[Tensor, "batch token dim"], edited: Edited) -> tuple[Tensor, ...]:
        """Return the regulator alone, and the norm of the edit divided by that of the activation, (batch, token, 1).

        For a regulator that accumulates evidence, also return that of each token by itself. The norm is that of the
        edit itself, because a difference of two activations would lose precision.
        """
        assert edited.regulated is not None  # this way always works it out
        transform, regulator = self._on(t.device)
        with torch.no_grad(), torch.autocast(t.device.type, enabled=False):
            edit = torch.linalg.vector_norm(self.applied(t, edited) * transform.edit(t), dim=-1, keepdim=True)
            size = torch.linalg.vector_norm(t.float(), dim=-1, keepdim=True).clamp(min=1e-12)
            alone = (regulator.alone(t),) if isinstance(regulator, Evidence) else ()
        return edited.regulated, edit / size, *alone

    def _on(self, device: torch.device) -> tuple[Transform, Regulator]:
        if self._device != device:
            self._transform, self._regulator = moved(self._transform, device), moved(self._regulator, device)
            self._device = device
        return self._transform, self._regulator


Way = Fused | Summing | General
