"""Summing: the fused way for regulators that accumulate evidence, and its short form for generated tokens.

For one token after a prompt, a site's evidence less its cut is linear in the token and in the sum of earlier tokens:

    e_i - cut = share_i * theta . t_i + (share_i * (memory * sum_{i-1} + bias) - cut)
    share_i   = 1 / (weight_i + prior)

The bracket is known before the pass, so `Decoding` computes it for all sites of a Steering at once. A site then takes
as many kernel launches as with a logistic regulator, and all sums are stored together at the end of the pass.

Limitations: the short form is used only on a CPU, where reading the padding costs nothing, at sites whose output is the
activation itself, and without gradients. Everything else is computed by `Evidence` itself.
"""

from collections.abc import Callable, Sequence, Sized
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, is_inference_mode_enabled, nn
from torch import is_autocast_enabled as autocasts
from torch.nn.functional import linear

from dsas.errors import StateError
from dsas.methods.affine_edit import CASTS, AffineEdit
from dsas.methods.base import moved
from dsas.model.foreign import Arguments, Foreign, Given
from dsas.model.forward_pass import ForwardPass
from dsas.model.passed import Turn
from dsas.model.sequence import Sequences
from dsas.regulators.evidence import Evidence
from dsas.runtime.edited import Edited


class Adding(NamedTuple):
    """The numbers that accumulate evidence on one device; offset: that of an edit that is the same everywhere."""

    theta: Float[Tensor, "1 dim"]
    bias: Float[Tensor, " 1"] | None
    shift: Float[Tensor, ""]
    regulator: Evidence
    offset: Float[Tensor, " dim"] | None
    at: Callable[[Tensor], Tensor]


class Summing:
    """The fused way for a regulator that accumulates evidence, with few kernel launches.

    together: the sites whose sums are computed with this one's for a generated token, None if each is separate.
    """

    same_for_all_rows = False  # it needs the forward pass

    def __init__(self, edit: AffineEdit, regulator: Evidence, rows: Float[Tensor, " row"] | None, alike: bool) -> None:
        """Edit with these numbers and this regulator. rows: strengths, as given. alike: whether they are folded in."""
        self.edit, self.regulator, self.factor = edit._replace(factor=1.0), regulator, edit.factor
        self._rows, self._alike = rows, alike
        self.together: SummedSites | None = None
        self._here: tuple[object, object, torch.dtype, Adding] | None = None

    def __call__(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass | None) -> Edited:
        """Return the steered activation; without a forward pass, these are whole rows of real tokens."""
        here, dtype = self._here, t.dtype  # read once: another thread may put another there
        if here is None or here[0] is not dtype or here[1] != t.device:
            wide = torch.promote_types(dtype, self.edit.offset.dtype)
            edit, regulator = self.edit.to(t.device, wide), moved(self.regulator, t.device)
            assert edit.theta is not None
            adding = Adding(edit.theta, edit.bias, -regulator.cut, regulator, edit.offset, edit.function())
            here = self._here = dtype, t.device, wide, adding if edit.is_addition else adding._replace(offset=None)
        _, _, wide, (theta, bias, shift, regulator, offset, at) = here
        own = t if dtype is wide else t.to(wide)
        forward_pass = forward_pass or ForwardPass(*t.shape[:2], device=t.device)
        gain, each = regulator.of_scores(linear(own, theta, bias), shift, forward_pass), self.each_row(forward_pass)
        if each is not None:
            gain = gain * each
        applied = gain if gain.dtype is wide else gain.to(wide)
        steered = torch.addcmul(own, applied, at(own) if offset is None else offset)
        return Edited(steered if dtype is wide else steered.to(dtype), gain)

    def each_row(self, forward_pass: ForwardPass) -> Float[Tensor, "batch 1 1"] | None:
        """Return the factor on the gain of each row, or None if it is folded into the edit. Raises as `spread` does."""
        if self._rows is None:
            return None
        each = forward_pass.spread(self._rows)
        return None if self._alike else each.view(-1, 1, 1).to(forward_pass.device, self.regulator.cut.dtype)

    def applied(self, t: Float[Tensor, "batch token dim"], edited: Edited) -> Float[Tensor, "batch token 1"]:
        """Return strength x regulator of every token."""
        assert edited.gain is not None  # this way always computes it
        return edited.gain * self.factor


class SummedSites:
    """The sites of a Steering whose evidence fades at the same rate, which are computed together.

    ways, place: those of each site by its number. keys: the key under which each site stores its sum, with its place.
    bias, cut: Float (site, 1, 1, 1).
    """

    def __init__(self, ways: dict[int, Summing]) -> None:
        self.ways = ways
        one = next(iter(ways.values())).regulator
        self.memory, self.prior, self.by_turn = one.memory, one.prior, one.by_turn
        self.place = {number: place for place, number in enumerate(ways)}
        self.keys = {((number, 0), "evidence"): place for number, place in self.place.items()}
        self.weight_key = ("every site", one.key), "weight"
        self.thetas = [way.edit.theta for way in ways.values() if way.edit.theta is not None]
        numbers = [(way.edit.bias, way.regulator.cut) for way in ways.values()]
        bias, cut = (torch.stack([x.detach().view(1, 1, 1) for x in each]) for each in zip(*numbers, strict=True))
        self.bias, self.cut = bias, cut

    def begin(self, step: ForwardPass, t: Float[Tensor, "row token dim"]) -> "Decoding | None":
        """Return the shared state of all sites in a pass, at the first site; None if the short form does not apply."""
        history = step.history
        if not isinstance(history, Sequences) or step.tokens > 1 or step.packing is not None or step.past == 0:
            return None
        if step.device.type != "cpu" or len(t) != step.batch:
            return None
        if history.real is not None and not bool(history.real[:, step.past :].all()):
            return None
        kept: Decoding | None = history.together
        if kept is None or not kept.goes_on(self, history):
            kept = history.together = Decoding.of(self, step, history)
        if kept is not None:
            kept.begin(history)
        return kept


def add_up_together(ways: Sequence[object]) -> None:
    """Connect the sites that accumulate evidence, if all fade at the same rate and are on the CPU in float32."""
    found = {number: way for number, way in enumerate(ways) if isinstance(way, Summing)}
    kinds = {(way.regulator.key, way.edit.offset.dtype, way.edit.offset.device.type) for way in found.values()}
    if len(kinds) == 1 and next(iter(kinds))[1:] == (torch.float32, "cpu"):
        together = SummedSites(found)
        for way in found.values():
            way.together = together


class Decoding:
    """The state that the sites of a Steering share from one generated token to the next, in its own buffers.

    sums, values, base: Float (site, row, 1, 1). weight, share: a number for one row, Float (row, 1, 1) for several
    rows.
    """

    def __init__(self, sites: SummedSites, step: ForwardPass, turn: Turn, sums: Tensor, weight: Tensor) -> None:
        rows = sums.shape[1]
        self.sites, self._turn, self._sums = sites, turn, sums
        self._weight: Any = float(weight) if rows == 1 else weight.view(rows, 1, 1)
        self._share: Any = 1.0
        self._base, self._values = torch.empty_like(sums), torch.empty_like(sums)
        self._inference = is_inference_mode_enabled()
        thetas = [theta.detach().view(1, -1, 1) if rows == 1 else theta.detach() for theta in sites.thetas]
        each = [way.each_row(step) for way in sites.ways.values()]
        self._each = list(zip(thetas, self._base.unbind(), self._values.unbind(), each, strict=True))
        self._missing, self._shape = set(sites.place), (rows, 1)

    @classmethod
    def of(cls, sites: SummedSites, step: ForwardPass, history: Sequences) -> "Decoding | None":
        """Return the shared state made from each site's own; None if a site has none, or two."""
        states = [history.state(key, anew=sites.by_turn) for key in sites.keys]
        twice = any(history.state(((number, 1), "evidence"), anew=False) is not None for number in sites.place)
        weight = history.state(sites.weight_key, anew=sites.by_turn)
        known = [state for state in states if state is not None and state.dtype is torch.float32]
        if twice or weight is None or len(known) < len(states) or bool((step.positions <= 0).any()):
            return None
        return cls(sites, step, history.turn, torch.stack(known).unsqueeze(-1), weight)

    def goes_on(self, sites: SummedSites, history: Sequences) -> bool:
        """Whether a pass continues from here: in the same turn, under the same sites."""
        return self.sites is sites and self._turn == history.turn and self._inference is is_inference_mode_enabled()

    def begin(self, history: Sequences) -> None:
        """Compute the value to which each site adds its own token."""
        sites, kept = self.sites, self.sites.memory
        self._weight = self._weight * kept + 1.0
        share = self._share = 1.0 / (self._weight + sites.prior)
        if isinstance(share, float):
            torch.add(torch.sub(sites.bias * share, sites.cut), self._sums, alpha=share * kept, out=self._base)
        else:
            torch.addcmul(torch.addcmul(-sites.cut, sites.bias, share), self._sums, share, value=kept, out=self._base)
        self._missing.update(sites.place)
        history.ending = self

    def takes(self, t: Given) -> bool:
        """Whether an activation is one that the short form edits."""
        if type(t) is not Tensor or t.requires_grad or not t.is_cpu or t.dtype not in CASTS or autocasts("cpu"):
            return False
        return t.shape[:-1] == self._shape and t.dtype is not torch.float64

    def gain(self, number: int, t: Float[Tensor, "row 1 dim"]) -> Float[Tensor, "row 1 1"]:
        """Return the factor on the edit of site `number`, for tokens in float32.

        Raises StateError for a site that has already run in this pass.
        """
        if number not in self._missing:
            raise StateError(
                "a site ran twice per generated token, but once per token of the prompt: run the prompt in the same "
                "way as the tokens after it"
            )
        self._missing.remove(number)
        theta, base, value, each = self._each[self.sites.place[number]]
        if len(t) == 1:
            torch.baddbmm(base, t, theta, alpha=self._share, out=value)
        else:
            torch.addcmul(base, linear(t, theta), self._share, out=value)
        gain = value.sigmoid()
        return gain if each is None else gain * each

    def end(self, history: Sequences) -> None:
        """Store the sums after the pass; a site that took another way has its own, one that did not run the old one."""
        sums = (self._values + self.sites.cut).mul_(self._weight + self.sites.prior)
        for number in self._missing:
            place, own = self.sites.place[number], history.current.carried.get(((number, 0), "evidence"))
            sums[place] = self._sums[place] if own is None else own
        self._sums = sums
        history.carry_together(self.sites.keys, sums.squeeze(-1))
        weight = self._weight
        history.carry(self.sites.weight_key, torch.full((1, 1, 1), weight) if isinstance(weight, float) else weight)


def shortened_sum(
    ways: Sequence[Any],
    number: int,
    record: Callable[[float, Tensor | None], None] | None,
    asks: Sized,
    acts: Callable[[], bool],
    change: Callable[[Given], Given],
    running: Callable[[], ForwardPass | None],
) -> Callable[[nn.Module, Arguments, Given], Given]:
    """Return a forward hook equivalent to `change`, with less Python for a generated token.

    running: the pass that is running in this thread. Others as in `dsas.runtime.edit.shortened`.
    """
    ready: Any = (None, None, None)  # one tuple, so that another thread sees all of it or none

    def hook(_module: nn.Module, _args: Arguments, output: Given) -> Foreign:
        nonlocal ready
        made, offset, at = ready
        way, step = ways[number], running()
        if way is None or way is not made or step is None:
            changed = change(output)
            if changed is not None and isinstance(way, Summing) and way.together is not None:
                ready = way, way.edit.offset if way.edit.is_addition else None, way.edit.function()
            return changed
        if asks and not acts():
            return None
        decoding = step.decoding
        if decoding is None:
            decoding = step.decoding = made.together.begin(step, output) or False
        if decoding is False or decoding.sites is not made.together or not decoding.takes(output):
            return change(output)
        own = output if output.dtype is torch.float32 else output.float()
        gain = decoding.gain(number, own)
        if record is not None:
            record(made.factor, gain)
        steered = torch.addcmul(own, gain, at(own) if offset is None else offset)
        return steered if own is output else CASTS[output.dtype](steered)

    return hook
