"""Picture verdict: did a concept vanish, did other pictures stay, and where did the picture change? By pixels alone.

There is no detector; three comparisons with other pictures drawn from the same noise take its place:

    gone      x is nearer to what the pipeline draws, unsteered, for the prompt without the concept (its target) than to
              what it draws for the prompt itself:   |x - x_target| < |x - x_0|       mean absolute differences
    kept      how far pictures of control prompts move, compared with how far another seed moves them
    inside    how far x is from x_0 where x_0 and x_target differ by more than `CONTRAST` (without targets: where at
              least half of the strength was applied); outside: everywhere else

Limitations: no measure looks at what a picture shows; "nearer to the target" says less the more alike both pictures
are, and nothing where the prompt does not decide what is drawn.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from dsas.errors import OptionError
from dsas.evaluation.intervals import Interval, bootstrap
from dsas.evaluation.picture_change import picture_change
from dsas.files.json_values import JsonObject

CONTRAST = 25.5  # of 255, over channels
FEW = 10  # pictures below which an interval says nothing
KEPT, PARTLY = 0.1, 0.5  # share of the change that another seed makes
CONFINED = 0.2  # share of the change inside

Pictures = Float[np.ndarray, "picture height width 3"]
Targets = Float[np.ndarray, "prompt height width 3"]
Region = Bool[np.ndarray, "asked height width"]


class PictureVerdict(NamedTuple):
    """What a Steering did at one strength; changes are means over pictures and pixels, 0 to 255.

    gone: share of prompts whose picture is nearer to its target's; None without targets. change: how far the prompts'
    pictures move. inside, outside: the same for pictures with a region that is not the whole picture; None where there
    are none.
    control: change of the control prompts' pictures, None without any. noise: change of all pictures by another seed.
    """

    gone: Interval | None
    change: Interval
    inside: Interval | None
    outside: Interval | None
    control: Interval | None
    noise: Interval

    def lines(self) -> list[str]:
        """Return the verdict in words, with its numbers."""
        found = [_concept(self.gone), _control(self.control, self.noise)]
        if self.inside is None or self.outside is None:
            return [
                *found,
                "Where: not measured: no region of the concept is known, such as when only text encoders are steered.",
            ]
        confined = self.outside.mean <= CONFINED * self.inside.mean
        word = "only the concept's region changes" if confined else "the rest of the picture changes, too"
        numbers = f"by {shown(self.inside)} of 255 inside the region and {shown(self.outside)} outside"
        rule = f"alone: outside at most {CONFINED:g} of inside"
        return [*found, f"Where: {word}: {numbers} ({rule}; {_counted(self.inside)})."]


def picture_verdict(
    before: Pictures,
    after: Pictures,
    other_seed: Pictures,
    *,
    prompts: int,
    target: Targets | None = None,
    acted: Region | None = None,
) -> PictureVerdict:
    """Return the verdict on pictures of which the first `prompts` ask for the concept and the others are controls.

    before, after, other_seed: unsteered, steered, and unsteered from other noise. target: unsteered, for the prompt
    that each should become. acted: where the first pictures were steered, which is used when there are no targets.
    Raises OptionError for pictures that do not form pairs, and unless `prompts` is from 1 to their number.
    """
    if not 1 <= prompts <= len(before) or (target is not None and len(target) != prompts):
        raise OptionError(f"expected pictures of {prompts} prompts and as many targets, got {len(before)} pictures")
    moved = picture_change(before, after).everywhere
    old, new = before[:prompts], after[:prompts]
    gone, region = None, acted
    if target is not None:
        gone = _mean((picture_change(target, new).everywhere < moved[:prompts]).astype(float))
        region = 255 * np.abs(target - old).mean(-1) > CONTRAST
    inside = outside = None
    if region is not None:
        split = picture_change(old, new, region=region)
        both = np.isfinite(split.inside) & np.isfinite(split.outside)
        if both.any():
            inside, outside = _mean(split.inside[both]), _mean(split.outside[both])
    control = _mean(moved[prompts:]) if len(moved) > prompts else None
    noise = _mean(picture_change(before, other_seed).everywhere)
    return PictureVerdict(gone, _mean(moved[:prompts]), inside, outside, control, noise)


def verdict_rows(verdicts: Mapping[float, PictureVerdict]) -> list[JsonObject]:
    """Return a row per strength and measure that was taken."""
    return [
        {"strength": strength, "measure": name, **value._asdict()}
        for strength, verdict in verdicts.items()
        for name, value in verdict._asdict().items()
        if value is not None
    ]


def shown(value: Interval) -> str:
    """Return a mean, with its 95 % interval where there are enough pictures for one."""
    interval = f" [{value.low:.3g}, {value.high:.3g}]" if value.n >= FEW else ""
    return f"{value.mean:.3g}{interval}"


def _mean(values: Float[np.ndarray, " picture"]) -> Interval:
    return bootstrap(np.asarray(values, dtype=np.float64)[:, None])


def _counted(value: Interval) -> str:
    return f"n = {value.n}" + ("" if value.n >= FEW else ", too few for an interval")


def _concept(gone: Interval | None) -> str:
    if gone is None:
        return "Concept: not measured: no target prompts were given, so it is unknown what the pictures should become."
    pictures = round(gone.mean * gone.n)
    word = "gone" if pictures == gone.n else "left" if pictures == 0 else "gone in some"
    share = f", a share of {shown(gone)}" if gone.n >= FEW else ""
    return (
        f"Concept: {word}: {pictures} of {gone.n} pictures are nearer to what the pipeline draws for the target prompt "
        f"than to the unsteered picture{share}."
    )


def _control(control: Interval | None, noise: Interval) -> str:
    if control is None:
        return "Control: not measured: no control prompts were given."
    share = control.mean / noise.mean if noise.mean else float("inf")
    word = "kept" if share <= KEPT else "partly kept" if share <= PARTLY else "not kept"
    rule = f"kept: at most {KEPT:g} of that, partly: at most {PARTLY:g}"
    return (
        f"Control: {word}: pictures of control prompts change by {shown(control)} of 255, and by {shown(noise)} with "
        f"another seed ({rule}; {_counted(control)})."
    )
