"""The affine family: transforms whose edit is one multiply-add per neuron (`dsas.methods.affine_edit`).

    T(t) - t  =  slope * t + offset      where low <= t <= high, 0 elsewhere;  all four are vectors (dim,)

`steer` is the general way to do equation (1) with any transform and the values of any regulator.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, Literal, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.affine_edit import AffineEdit
from dsas.methods.base import Samples
from dsas.methods.moments import Moments
from dsas.methods.served_form import ServedEdit
from dsas.transforms.base import Transform

EVERYWHERE = float(np.finfo(np.float32).max)
Support = tuple[float, float] | Literal["everywhere"]


class AffineTransform(Transform, ABC):
    """A transform T(t) = t + slope * t + offset per neuron, where the neuron's value lies in its support."""

    has_opposite: ClassVar[bool] = True

    @abstractmethod
    def coefficients(self) -> AffineEdit:
        """Return the vectors of the edit, on the device of the transform, without a regulator."""

    @final
    def edit(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return slope * t + offset inside the support and 0 outside, in float32 or better."""
        found = self.coefficients()
        if found.is_addition:
            return found.offset.expand_as(t)
        wide = _widened(t, found.offset)
        return found.to(wide.device, wide.dtype).function()(wide)

    @final
    def served_form(self) -> ServedEdit:
        """Return the vectors of the edit."""
        return ServedEdit(self.coefficients())


class Translation(AffineTransform, ABC):
    """Adds one vector (dim,), in units of the activation, to every token.

    Translations can be added, scaled and negated exactly: `a + b`, `0.5 * a`, `-a`, each of the class of `a`.
    """

    vector: Tensor

    def __init__(self, vector: Float[Tensor, " dim"]) -> None:
        """Keep the vector that is added."""
        super().__init__()
        self.keep(vector=vector)

    @final
    def coefficients(self) -> AffineEdit:
        """Return the vector as a pure offset."""
        return AffineEdit(self.vector)

    @final
    def __add__(self, other: object) -> "Translation":
        if not isinstance(other, Translation):
            raise OptionError(
                f"only additions of vectors have an exact sum, got {type(self).__name__} + {type(other).__name__}; "
                "apply several Steerings one after another with a | b"
            )
        return type(self)(self.vector + other.vector)

    @final
    def __mul__(self, factor: float) -> "Translation":
        return type(self)(factor * self.vector)

    __rmul__ = __mul__

    @final
    def __neg__(self) -> "Translation":
        return type(self)(-self.vector)


class Transport(AffineTransform, ABC):
    """The maps of activation transport: T(t) = slope * t + offset for each neuron, inside [low, high].

    All are (dim,): slope has no unit, the others are in units of the activation; the largest float32 number means no
    end.
    """

    slope: Tensor
    offset: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        slope: Float[Tensor, " dim"],
        offset: Float[Tensor, " dim"],
        low: Float[Tensor, " dim"],
        high: Float[Tensor, " dim"],
    ) -> None:
        """Keep the maps and their supports."""
        super().__init__()
        self.keep(slope=slope, offset=offset, low=low, high=high)
        self._bounded = bool((low > -EVERYWHERE).any() or (high < EVERYWHERE).any())

    @final
    def coefficients(self) -> AffineEdit:
        """Return the edit's vectors: slope - 1 and offset."""
        ends = (self.low, self.high) if self._bounded else (None, None)
        return AffineEdit(self.offset, self.slope - 1, *ends)


def sorted_line(
    source: Samples, target: Samples, *, seed: int = 0
) -> tuple[Float[Tensor, " dim"], Float[Tensor, " dim"]]:
    """Return slope and offset (dim,) of the least-squares lines through the sorted samples, computed in float64.

    From the larger set, as many samples are drawn (by `seed`) as the smaller one has. A neuron that is constant in the
    source is moved by the difference of its means.
    """
    count = min(len(source), len(target))
    s, t = (_drawn(x, count, seed).double().sort(0).values for x in (source, target))
    from_mean, to_mean = s.mean(0), t.mean(0)
    centred = s - from_mean
    spread = centred.square().sum(0)
    slope = torch.where(spread > 0, (centred * (t - to_mean)).sum(0) / spread, 1.0)
    return slope.float(), (to_mean - slope * from_mean).float()


def _drawn(x: Tensor, count: int, seed: int) -> Tensor:
    if len(x) == count:
        return x
    return x[torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[:count]]


def support_of(source: Samples, support: Support) -> tuple[Tensor, Tensor]:
    """Return the ends (dim,) of the percentiles `support` of every neuron, or the largest numbers for "everywhere".

    Raises OptionError unless 0 <= low < high <= 100.
    """
    if support == "everywhere":
        end = source.new_full(source.shape[1:], EVERYWHERE, dtype=torch.float32)
        return -end, end
    low, high = support
    if not 0 <= low < high <= 100:
        raise OptionError(f"support must be 'everywhere' or two percentiles 0 <= low < high <= 100, got {support}")
    ends = np.percentile(source.double().numpy(), [low, high], axis=0)
    return torch.from_numpy(ends[0]).float(), torch.from_numpy(ends[1]).float()


def extremes(source: Moments, support: Support) -> tuple[Tensor, Tensor] | None:
    """Return `support_of` the samples with these moments, or None where it lies within their extremes."""
    if support == "everywhere":
        return support_of(source.mean[None], support)
    return (source.low.float(), source.high.float()) if tuple(support) == (0, 100) else None


def steer(
    t: Float[Tensor, "batch token dim"], gain: Float[Tensor, "batch token gain"], transform: Transform
) -> Float[Tensor, "batch token dim"]:
    """Return t + gain * (T(t) - t) in the dtype of `t`, computed in float32 or better.

    gain: strength x weight x regulator, one number per token or one per neuron. Affine transforms need one temporary
    less, which rounds differently.
    """
    edit = transform.edit(t)
    if not isinstance(transform, AffineTransform):
        return (t + gain * edit).to(t.dtype)
    wide = _widened(t, edit)
    return torch.addcmul(wide, gain.to(wide.dtype), edit.to(wide.dtype)).to(t.dtype)


def _widened(t: Tensor, other: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, other.dtype))
