"""Adding: several Steerings that add at one site, as one: the activation is read and written once, however many add.

How much one of them moves the score of a later one is known before any token comes:

    s_k  =  theta_k . t + bias_k + sum_{j < k} g_j (theta_k . v_j)        g_k = sigmoid(s_k)
    t'   =  t + sum_k g_k v_k

So one product gives the scores of all, a recursion over a few numbers their gains, and another product what they add.
The order in which they act is kept, and so is what each records. A constant regulator is one of infinite bias.

Limitations: additions with a constant or logistic regulator, one strength for all rows, plain activations without
gradients. Everything else is steered by one hook after another, and so is the first activation of each kind.
"""

from collections.abc import Callable, Sequence, Sized
from math import exp, inf
from operator import mul
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch import is_autocast_enabled as autocasts
from torch.nn.functional import linear

from dsas.methods.affine_edit import AffineEdit, cast
from dsas.model.foreign import Arguments, Foreign, Given
from dsas.runtime.edit import Fused, Way

FEW = 8  # tokens, for which numbers of Python are faster than tensors
LOWEST = -700.0  # score whose exponential is still a number


class Part(NamedTuple):
    """What one Steering does at a site, with the fields of `dsas.runtime.edit.shortened`."""

    ways: Sequence[Way | None]
    number: int
    record: Callable[[float, Tensor | None], None] | None
    asks: Sized
    acts: Callable[[], bool]


class Sums:
    """The sum of several ways, on activations of the dtype, device and width of `like`."""

    def __init__(
        self, ways: list[Way | None], edits: Sequence[AffineEdit], like: Float[Tensor, "batch token dim"]
    ) -> None:
        """Work out all that does not depend on a token; edits: one for each of the ways."""
        self.ways, self._dtype, self._device, self._kind = ways, like.dtype, like.device, like.device.type
        wide = torch.promote_types(like.dtype, edits[0].offset.dtype)
        here = [edit.to(like.device, wide) for edit in edits]
        self._widen, self._round = (None, None) if wide is like.dtype else (cast(wide), cast(like.dtype))
        self._offsets = torch.stack([edit.offset for edit in here])
        self._total = self._offsets.sum(0) if all(edit.theta is None for edit in here) else None
        zero, always = torch.zeros_like(self._offsets[:1]), self._offsets.new_full((1,), inf)
        self._thetas = torch.cat([zero if edit.theta is None else edit.theta for edit in here])
        self._biases = torch.cat([always if edit.bias is None else edit.bias for edit in here])
        self.constant = [edit.theta is None for edit in here]
        self._columns, self._constants = self._thetas.T.unsqueeze(0), self._biases.view(1, 1, -1)
        moves = (self._thetas.double() @ self._offsets.double().T).to(wide)
        self._moves = [moves[k, :k] for k in range(len(here))]
        self._moves_as_numbers = [row.tolist() for row in self._moves]

    def take(self, t: Given) -> bool:
        """Whether these are for an activation."""
        plain = type(t) is Tensor and t.ndim == 3 and t.dtype is self._dtype and t.device == self._device
        return plain and not t.requires_grad and not autocasts(self._kind) and t.shape[-1] == self._offsets.shape[-1]

    def __call__(
        self, t: Float[Tensor, "batch token dim"]
    ) -> tuple[Float[Tensor, "batch token dim"], Float[Tensor, "batch token way"] | None]:
        """Return the steered activation and what each way's edit was multiplied by, None where all are constant."""
        own = t if self._widen is None else self._widen(t)
        if self._total is not None:
            steered, gains = own + self._total, None
        else:
            rows, tokens, dim = own.shape
            few = rows * tokens <= FEW and self._kind == "cpu"
            gains = self._of_few(own) if few else self._of_many(own)
            if rows == 1:
                steered = torch.baddbmm(own, gains, self._offsets[None])
            else:
                steered = torch.addmm(own.reshape(-1, dim), gains.flatten(0, 1), self._offsets).view(own.shape)
        return steered if self._round is None else self._round(steered), gains

    def _of_few(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token way"]:
        alone = len(t) == 1  # here this takes half the time of the other
        found = torch.baddbmm(self._constants, t, self._columns) if alone else linear(t, self._thetas, self._biases)
        return torch.tensor([[self._of_one(scores) for scores in row] for row in found.tolist()], dtype=t.dtype)

    def _of_one(self, scores: list[float]) -> list[float]:
        gains: list[float] = []
        for score, moved in zip(scores, self._moves_as_numbers, strict=True):
            now = score + sum(map(mul, moved, gains))
            gains.append(0.0 if now < LOWEST else 1 / (1 + exp(-now)))
        return gains

    def _of_many(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token way"]:
        rows, tokens, dim = t.shape
        gains = torch.addmm(self._biases.unsqueeze(1), self._thetas, t.reshape(-1, dim).T)  # (way, token)
        for k, moved in enumerate(self._moves):
            now = gains[k]
            if k > 0:
                now.addmv_(gains[:k].T, moved)
            now.sigmoid_()
        return gains.T.unflatten(0, (rows, tokens))


def added_up(
    hooks: Sequence[Callable[[nn.Module, Arguments, Given], Given]], parts: Sequence[Part]
) -> Callable[[nn.Module, Arguments, Given], Given]:
    """Return a forward hook that does what these do one after another; parts: what each of them asks."""
    ready: Sums | None = None  # all that is kept, so that another thread sees all of it or none
    places = [(part.ways, part.number) for part in parts]
    asks = [part.asks for part in parts]
    records = [(number, part.record) for number, part in enumerate(parts) if part.record is not None]

    def one_by_one(module: nn.Module, args: Arguments, output: Given) -> tuple[Foreign, bool]:
        """Return the steered output, and whether every hook changed it."""
        every = True
        for hook in hooks:
            changed = hook(module, args, output)
            every, output = every and changed is not None, output if changed is None else changed
        return output, every

    def hook(module: nn.Module, args: Arguments, output: Given) -> Foreign:
        nonlocal ready
        if torch.compiler.is_compiling():  # what is stored here would become part of the graph
            return one_by_one(module, args, output)[0]
        sums, now = ready, [ways[number] for ways, number in places]
        if sums is None or sums.ways != now or not sums.take(output):
            changed, every = one_by_one(module, args, output)
            plain = type(output) is Tensor and output.ndim == 3 and not output.requires_grad
            if every and plain and not autocasts(output.device.type):  # by now each has noted that it acts here
                edits = [way.addition for way in now if isinstance(way, Fused)]
                known: Any = [edit for edit in edits if edit is not None]
                ready = Sums(now, known, output) if len(known) == len(now) else None
            return changed
        if any(asks) and not all(part.acts() for part in parts if part.asks):
            return one_by_one(module, args, output)[0]
        steered, gains = sums(output)
        for number, record in records:
            made: Any = sums.ways[number]
            alone = None if gains is None or sums.constant[number] else gains[..., number : number + 1]
            record(made.factor, alone)
        return steered

    return hook
