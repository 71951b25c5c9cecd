"""Selectivity: how much less probable a Steering makes unwanted text, at a given cost on texts it should leave alone.

    selectivity = mean loss of the source texts at the strength where the damage to control texts is the stated one

Losses and damage are those of `dsas.evaluation.loss_curve`, in nats per token.

Between two measured strengths, damage and losses are taken to be powers of the strength (straight lines in log-log
scale, exact where damage grows with the square of the strength and effect in proportion); where one of the two is not
above 0, they are interpolated linearly. The strength reported is the first at which the damage is reached. A damage
that no measured strength reaches is reported as not reached, and nothing is extrapolated.

Intervals are 95 %, by the bootstrap over texts: source texts and each kind of control text are resampled separately,
and the strength is found anew in every draw. In a ratio of two Steerings both see the same draws.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError
from dsas.evaluation.intervals import Interval, draw_counts, percentile_interval
from dsas.evaluation.loss_curve import DAMAGE, Curve, Losses, Yardstick, measured_curve
from dsas.files.json_values import JsonObject
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.parallel.progress import progress_bar
from dsas.regulators.constant import Constant
from dsas.steering.steering import Steering


class Kind(NamedTuple):
    """One kind of control text.

    loss: what it loses at the common strength. nats: what the source loses at the strength where this kind alone loses
    the stated damage; None when it never does.
    """

    loss: Interval
    nats: Interval | None


@dataclass(frozen=True, eq=False)
class Selectivity:
    """How selective one Steering is at a stated damage.

    nats: what source texts lose per token, at `strength`. kinds: by kind of control text. ratio: nats, divided by those
    of the Steering it is compared with. curve: all that was measured. A value that was not reached is None.
    """

    damage: float
    strength: Interval | None
    nats: Interval | None
    kinds: dict[str, Kind]
    ratio: Interval | None
    curve: Curve

    @property
    def reached(self) -> bool:
        """Whether some measured strength does the stated damage."""
        return self.nats is not None

    def as_dict(self) -> JsonObject:
        """Return the result as JSON-ready values, with the whole curve; what was not reached is null."""
        return {
            "damage": self.damage,
            **{name: _plain(getattr(self, name)) for name in ("strength", "nats", "ratio")},
            "kinds": {
                name: {key: _plain(value) for key, value in kind._asdict().items()} for name, kind in self.kinds.items()
            },
            "curve": self.curve.rows(),
        }


def measure_selectivity(
    model: Model,
    tokenizer: Tokenizer,
    steering: Steering,
    *,
    source: Sequence[Given],
    control: Mapping[str, Sequence[Given]],
    damage: float = DAMAGE,
    progress: bool = True,
) -> Selectivity:
    """Return how selective a Steering is on texts that it was not fitted on, against itself without a regulator.

    source, control: held-out texts; control by kind. damage: nats per token that control may lose on average.
    Raises what `Yardstick`, `selectivity` and `Steering.apply` raise.
    """
    yardstick = Yardstick(model, tokenizer, source=source, control=control)
    constant = without_regulator(steering)
    with progress_bar(progress) as bar:
        task = bar.add_task("measuring strengths", total=None)

        def curve(one: Steering) -> Curve:
            def losses(strength: float) -> Losses:
                found = yardstick.losses(one.apply(model, strength, record=False))
                bar.advance(task)
                return found

            return measured_curve(losses, damage=damage)

        return selectivity(curve(steering), damage=damage, against=curve(constant))


def without_regulator(steering: Steering) -> Steering:
    """Return the same Steering with the constant regulator 1 at every site."""
    return Steering([rule._replace(regulator=Constant(1.0)) for rule in steering.rules], steering.model)


def selectivity(
    curve: Curve, *, damage: float = DAMAGE, against: Curve | None = None, resamples: int = 2000, seed: int = 0
) -> Selectivity:
    """Return the selectivity that a curve shows at the stated damage.

    against: the curve of what it is compared with, such as the constant regulator, on the same texts. A draw in which
    the damage is not reached counts as infinite. Raises OptionError when `damage` is not above 0, `resamples` < 1, or
    the two curves are of different texts.
    """
    if not 0 < damage < math.inf:
        raise OptionError(f"expected a damage above 0, got {damage}")
    sizes = _sizes(curve)
    if against is not None and _sizes(against) != sizes:
        raise OptionError(f"both curves must be of the same texts, got {sizes} and {_sizes(against)} of them")
    counts = {
        name: np.concatenate([np.ones((1, size)), draw_counts(size, resamples=resamples, seed=[seed, number])])
        for number, (name, size) in enumerate(sizes.items())
    }
    means, n = _means(curve, counts), sum(sizes.values())
    place = _Place.of(curve.strengths, means[_DAMAGE], damage)
    nats = place.read(means[_SOURCE])
    ratio = None
    if against is not None:
        others = _means(against, counts)
        below = _Place.of(against.strengths, others[_DAMAGE], damage).read(others[_SOURCE])
        with np.errstate(divide="ignore", invalid="ignore"):
            quotient = np.where(np.isinf(nats) & np.isinf(below), np.inf, nats / below)
        ratio = _interval(quotient, n) if np.isfinite([nats[0], below[0]]).all() and below[0] > 0 else None
    kinds: dict[str, Kind] = {}
    for kind in curve.losses[0].control:
        alone = _Place.of(curve.strengths, means[kind], damage).read(means[_SOURCE])
        loss = _interval(place.read(means[kind]), n)
        if loss is not None:
            kinds[kind] = Kind(loss, _interval(alone, sizes[_SOURCE] + sizes[kind]))
    return Selectivity(
        damage=damage,
        strength=_interval(place.strength, n),
        nats=_interval(nats, n),
        kinds=kinds,
        ratio=ratio,
        curve=curve,
    )


def _plain(interval: Interval | None) -> JsonObject | None:
    return None if interval is None else interval._asdict()


_SOURCE, _DAMAGE = "\0source", "\0damage"  # a name that no kind of control text (named by the user) can have


def _sizes(curve: Curve) -> dict[str, int]:
    first = curve.losses[0]
    return {_SOURCE: len(first.source), **{kind: len(values) for kind, values in first.control.items()}}


def _means(curve: Curve, counts: Mapping[str, np.ndarray]) -> dict[str, Float[np.ndarray, "draw strength"]]:
    """Return the means (source, each kind, damage) per draw and strength; the first draw holds all texts once."""
    groups = {_SOURCE: np.stack([one.source for one in curve.losses])}
    groups |= {kind: np.stack([one.control[kind] for one in curve.losses]) for kind in curve.losses[0].control}
    means = {name: counts[name] @ values.T / values.shape[1] for name, values in groups.items()}
    return {**means, _DAMAGE: np.mean([means[kind] for kind in curve.losses[0].control], axis=0)}


def _interval(draws: Float[np.ndarray, " draw"], n: int) -> Interval | None:
    """Return the first draw's value with the interval of the others, or None when it is not reached."""
    return percentile_interval(float(draws[0]), draws[1:], n) if math.isfinite(draws[0]) else None


class _Place(NamedTuple):
    """Where on the ladder a damage is first reached, per draw: `part` of the way from rung `upper` - 1 to `upper`.

    Rung 0 is strength 0, where nothing is lost. upper is 0 where the damage is never reached.
    """

    upper: np.ndarray
    part: Float[np.ndarray, " draw"]
    strength: Float[np.ndarray, " draw"]

    @classmethod
    def of(cls, strengths: Sequence[float], damages: Float[np.ndarray, "draw strength"], wanted: float) -> "_Place":
        damages = np.concatenate([np.zeros((len(damages), 1)), damages], axis=1)
        rungs = np.array([0.0, *strengths])
        upper = (damages >= wanted).argmax(1)  # the first True; 0 where there is none, since rung 0 does no damage
        rows, lower = np.arange(len(damages)), np.maximum(upper - 1, 0)
        low, high = damages[rows, lower], damages[rows, upper]
        with np.errstate(divide="ignore", invalid="ignore"):
            powers, lines = np.log(wanted / low) / np.log(high / low), (wanted - low) / (high - low)
        part = np.where(upper == 0, 0.0, np.where(low > 0, powers, lines))
        place = cls(upper, part, part)
        along = np.repeat(rungs[None], len(damages), axis=0)
        return place._replace(strength=place._between(along))

    def read(self, values: Float[np.ndarray, "draw strength"]) -> Float[np.ndarray, " draw"]:
        """Return the value at the place in each draw, infinite where there is no such place."""
        return self._between(np.concatenate([np.zeros((len(values), 1)), values], axis=1))

    def _between(self, values: Float[np.ndarray, "draw rung"]) -> Float[np.ndarray, " draw"]:
        rows = np.arange(len(values))
        low, high = values[rows, np.maximum(self.upper - 1, 0)], values[rows, self.upper]
        with np.errstate(divide="ignore", invalid="ignore"):
            powers = low * (high / low) ** self.part
        lines = low + self.part * (high - low)
        return np.where(self.upper == 0, np.inf, np.where((low > 0) & (high > 0), powers, lines))
