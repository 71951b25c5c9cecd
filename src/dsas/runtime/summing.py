"""Summing: the fused way of regulators that add evidence up, and its short form for a token that is generated.

One token after a prompt, a site's evidence less its cut is linear in the token and in what all tokens before it gave:

    e_i - cut = share_i * theta . t_i + (share_i * (memory * sum_{i-1} + bias) - cut)
    share_i   = 1 / (weight_i + prior)

The bracket is known before the pass, so `Decoding` works it out for all sites of a Steering at once. A site is left
with as many launches as a logistic regulator has, and at the end of the pass all sums are kept together.

Limitations: the short form is taken on a CPU, where looking at the padding costs nothing, at sites that give their
activation as it is, and without gradients. Everything else goes the way that `Evidence` itself does.
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
    """What adds evidence up on one device; offset: that of an edit that is the same everywhere."""

    theta: Float[Tensor, "1 dim"]
    bias: Float[Tensor, " 1"] | None
    shift: Float[Tensor, ""]
    regulator: Evidence
    offset: Float[Tensor, " dim"] | None
    at: Callable[[Tensor], Tensor]


class Summing:
    """The fused way of a regulator that adds evidence up: as few launches as its sums leave.

    together: the sites that are added up with this one where a token is generated, None where each is by itself.
    """

    same_for_all_rows = False  # it needs the pass

    def __init__(self, edit: AffineEdit, regulator: Evidence, rows: Float[Tensor, " row"] | None, alike: bool) -> None:
        """Edit by these numbers where the regulator says so; rows: strengths, as given; alike: they are in the edit."""
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
        """Return what the gain of each row is multiplied by; None where the edit has it. Raises as `spread`."""
        if self._rows is None:
            return None
        each = forward_pass.spread(self._rows)
        return None if self._alike else each.view(-1, 1, 1).to(forward_pass.device, self.regulator.cut.dtype)

    def applied(self, t: Float[Tensor, "batch token dim"], edited: Edited) -> Float[Tensor, "batch token 1"]:
        """Return strength x regulator of every token."""
        assert edited.gain is not None  # this way always works it out
        return edited.gain * self.factor


class SummedSites:
    """The sites of a Steering whose evidence fades alike, which are added up together.

    ways, place: those of each site by its number. keys: under which each carries its sum, with its place. bias, cut:
    Float (site, 1, 1, 1).
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
        """Return what all sites take in a pass, asked at the first; None where it is none for the short form."""
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
    """Let the sites that add evidence up know each other, where all fade alike and are on the CPU in float32."""
    found = {number: way for number, way in enumerate(ways) if isinstance(way, Summing)}
    kinds = {(way.regulator.key, way.edit.offset.dtype, way.edit.offset.device.type) for way in found.values()}
    if len(kinds) == 1 and next(iter(kinds))[1:] == (torch.float32, "cpu"):
        together = SummedSites(found)
        for way in found.values():
            way.together = together


class Decoding:
    """What the sites of a Steering keep together from one generated token to the next, in buffers of their own.

    sums, values, base: Float (site, row, 1, 1). weight, share: a number for one row, Float (row, 1, 1) for several.
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
        """Return what continues from what each site carried by itself; None where one did not, or did so twice."""
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
        """Work out what each site adds its own token to."""
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
        """Return what the edit of site `number` is multiplied by, of tokens in float32.

        Raises StateError for a site that has run in this pass already.
        """
        if number not in self._missing:
            raise StateError(
                "a site ran twice for one generated token, and once for each token of the prompt: run the prompt as "
                "the tokens after it are run"
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
        """Keep the sums after the pass; a site that went another way has its own, one that did not run the old."""
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
    change: Callable[[Given], Given],
    record: Callable[[float, Tensor | None], None] | None,
    asks: Sized,
    acts: Callable[[], bool],
    running: Callable[[], ForwardPass | None],
) -> Callable[[nn.Module, Arguments, Given], Given]:
    """Return a forward hook that does what `change` does, in less Python for a token that is generated.

    running: the pass that runs in this thread. Others as in `dsas.runtime.edit.shortened`.
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
