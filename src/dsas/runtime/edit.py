"""Editing: what a rule does to one activation, by the shortest way that its methods allow.

The affine family with a logistic or constant regulator goes the fused way (`dsas.methods.kernels`): strength and
constant are folded into the vectors once, so that a site takes three launches (one without a regulator; one more with a
slope, two more in bfloat16) and keeps at most 2 dim new numbers. Everything else, and whatever is asked for gradients
of its own numbers, goes the general way: regulator, transform, sum.

Left out: supports, which the fused step does not know.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import is_autocast_enabled as autocasts

from dsas.methods.kernels import Fold
from dsas.methods.kernels.eager import Stepped, prepared, stepped
from dsas.model.forward_pass import ForwardPass
from dsas.model.strength import per_row
from dsas.regulators.base import Regulator
from dsas.regulators.constant import Constant
from dsas.regulators.logistic import Logistic
from dsas.transforms.affine import AffineTransform, steer
from dsas.transforms.base import Transform

Method = TypeVar("Method", bound=nn.Module)


class Edited(NamedTuple):
    """What the general way gives: the steered activation, strength x regulator, and the regulator alone."""

    t: Float[Tensor, "batch token dim"]
    gain: Float[Tensor, "batch token gain"]
    regulated: Float[Tensor, "batch token gain"]


def fold_rule(transform: Transform, regulator: Regulator, strength: float = 1.0) -> Fold | None:
    """Return the numbers of the fused step, strength and constant folded in; None where only the general way does."""
    if type(regulator) not in (Logistic, Constant) or not isinstance(transform, AffineTransform):
        return None
    slope, offset, low, high = transform.coefficients()
    if low is not None or high is not None or type(transform).edit is not AffineTransform.edit:
        return None
    theta, bias, factor = None, None, strength
    if isinstance(regulator, Logistic):
        theta, bias = regulator.theta[None], regulator.bias.view(1)
    elif isinstance(regulator, Constant):
        factor = strength * regulator.value
    if any(value is not None and value.requires_grad for value in (slope, offset, theta, bias)):
        return None
    if factor != 1.0:
        slope, offset = None if slope is None else slope * factor, offset * factor
    return Fold(offset[None], None if slope is None else slope[None], theta, bias)


def way_of(
    transform: Transform, regulator: Regulator, strengths: Float[Tensor, "*row"], *, skip_sinks: bool, detail: bool
) -> "Fused | General":
    """Return the shortest way to edit by these methods; detail: keep what the regulator alone gave."""
    if not (skip_sinks or detail or strengths.requires_grad):
        alike = bool((strengths == strengths.flatten()[0]).all())
        shared = float(strengths.flatten()[0]) if alike else 1.0
        fold = fold_rule(transform, regulator, shared)
        if fold is not None:
            factor = shared * (regulator.value if isinstance(regulator, Constant) else 1.0)
            return Fused(fold, strengths if strengths.ndim else None, alike, factor)
    return General(transform, regulator, strengths, skip_sinks)


def edit_with(
    way: "Fused | General", t: Float[Tensor, "batch token dim"], step: ForwardPass | None
) -> Stepped | Edited:
    """Return what a way does to `t`, in the precision that it asks for whatever autocast says."""
    kind = t.device.type
    if not autocasts(kind):
        return way(t, step)
    with torch.autocast(kind, enabled=False):
        return way(t, step)


def shortened(
    way: "Fused", change: Callable[[Any], Any], record: Callable[[Tensor | None], None] | None
) -> Callable[[nn.Module, tuple[Any, ...], Any], Any]:
    """Return a forward hook that does what `change` does to an output, in less Python from the second pass on.

    The first plain activation that comes says for which dtype and device; any other goes through `change` again.
    record: called with each token's gain over `way.factor`, None for 1, when nothing is being compiled.
    """
    dtype: Any = None
    device: Any = None
    kind: Any = None
    step: Any = None

    def hook(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal dtype, device, kind, step
        plain = type(output) is Tensor and output.ndim == 3
        if plain and output.dtype is dtype and output.device == device and not autocasts(kind):
            steered, gain = step(output)
            if record is not None and not torch.compiler.is_compiling():
                record(gain)
            return steered
        changed = change(output)
        if plain and dtype is None and not torch.compiler.is_compiling():
            step, device, kind = way.prepared(output), output.device, output.device.type
            dtype = output.dtype  # the last, since another thread may come by
        return changed

    return hook


class _Here(NamedTuple):
    """A fold and a strength per row, as one kind of activation needs them; batch 0 is any."""

    device: torch.device
    dtype: torch.dtype
    batch: int
    copies: int
    fold: Fold
    rows: Tensor | None


class Fused:
    """The fused way. Strengths that differ from row to row are not in the fold."""

    def __init__(self, fold: Fold, rows: Float[Tensor, " row"] | None, alike: bool, factor: float) -> None:
        """Edit by a fold; rows: strengths, as given; alike: they are in the fold; factor: all that is folded in."""
        self._fold, self._rows, self._alike, self.factor = fold, rows, alike, factor
        self._here: _Here | None = None

    def __call__(self, t: Float[Tensor, "batch token dim"], step: ForwardPass | None) -> Stepped:
        """Return the steered activation; of the step only the copies of the rows count."""
        here, copies = self._here, 1 if step is None else step.copies  # read once: another thread may put another there
        if (
            here is None
            or here.device != t.device
            or here.dtype != t.dtype
            or 0 < here.batch != len(t)
            or here.copies != copies
            or torch.compiler.is_compiling()
        ):
            here = self._placed(t, copies)
        return stepped(t, here.fold, here.rows)

    def applied(self, t: Float[Tensor, "batch token dim"], edited: Stepped | Edited) -> Float[Tensor, "batch token 1"]:
        """Return strength x regulator of every token."""
        gain = edited.gain
        every = t.new_full((1, 1, 1), self.factor, dtype=torch.float32) if gain is None else gain * self.factor
        return every.expand(*t.shape[:2], 1)

    @property
    def same_for_all_rows(self) -> bool:
        """Whether it was given one strength, for batches of any size."""
        return self._rows is None

    def prepared(self, t: Float[Tensor, "batch token dim"]) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Return what this does to activations of the dtype and device of `t`, when it is the same for all rows."""
        return prepared(self._placed(t, 1).fold, t.dtype)

    def _placed(self, t: Tensor, copies: int) -> _Here:
        wide = torch.promote_types(t.dtype, self._fold.offset.dtype)
        fold, rows = self._fold.to(t.device, wide), None
        if self._rows is not None:
            spread = _spread(self._rows, len(t), copies)
            rows = None if self._alike else spread.to(t.device, wide)
        here = _Here(t.device, t.dtype, 0 if self._rows is None else len(t), copies, fold, rows)
        if not torch.compiler.is_compiling():
            self._here = here
        return here


class General:
    """The way of any transform with any regulator, gradients of their numbers and of the strengths included."""

    def __init__(
        self, transform: Transform, regulator: Regulator, strengths: Float[Tensor, "*row"], skip_sinks: bool
    ) -> None:
        """Edit by methods that stay where they are: they are copied to the activations' device, at most once."""
        self._transform, self._regulator, self._skip_sinks = transform, regulator, skip_sinks
        self._strengths = strengths
        self._shared = float(strengths) if strengths.ndim == 0 and not strengths.requires_grad else None
        self._device: torch.device | None = None

    def __call__(self, t: Float[Tensor, "batch token dim"], step: ForwardPass | None) -> Edited:
        """Return the steered activation; without a step, all tokens are taken to be real and to be the first."""
        transform, regulator = self._on(t.device)
        step = step or ForwardPass(*t.shape[:2], device=t.device)
        regulated = regulator(t, step)
        by_row = self._shared
        if by_row is None:
            by_row = _spread(self._strengths.reshape(-1), len(t), step.copies).view(-1, 1, 1).to(t.device)
        gain = regulated * by_row
        if self._skip_sinks:
            gain = gain.masked_fill((step.positions == 0).unsqueeze(-1), 0.0)
        return Edited(steer(t, gain, transform), gain, regulated)

    def applied(
        self, t: Float[Tensor, "batch token dim"], edited: Stepped | Edited
    ) -> Float[Tensor, "batch token gain"]:
        """Return strength x regulator of every token."""
        assert edited.gain is not None  # this way always works it out
        return edited.gain

    def detail(self, t: Float[Tensor, "batch token dim"], edited: Stepped | Edited) -> tuple[Tensor, Tensor]:
        """Return the regulator alone, and the norm of the edit over that of the activation, (batch, token, 1).

        The edit's own norm: of the difference of two activations, little may be left in their precision.
        """
        assert isinstance(edited, Edited)  # what this way gives
        transform, _ = self._on(t.device)
        with torch.no_grad(), torch.autocast(t.device.type, enabled=False):
            edit = torch.linalg.vector_norm(self.applied(t, edited) * transform.edit(t), dim=-1, keepdim=True)
            size = torch.linalg.vector_norm(t.float(), dim=-1, keepdim=True).clamp(min=1e-12)
        return edited.regulated, edit / size

    def _on(self, device: torch.device) -> tuple[Transform, Regulator]:
        if self._device != device:
            self._transform, self._regulator = _moved(self._transform, device), _moved(self._regulator, device)
            self._device = device
        return self._transform, self._regulator


def _spread(strengths: Float[Tensor, " row"], rows: int, copies: int) -> Float[Tensor, " batch"]:
    """Return a strength for each of `rows` rows, which are the user's `copies` times over."""
    return per_row(strengths, rows // copies).repeat(copies)


def _moved(method: Method, device: torch.device) -> Method:
    tensors = [*method.parameters(), *method.buffers()]
    return method if all(value.device == device for value in tensors) else copy.deepcopy(method).to(device)
