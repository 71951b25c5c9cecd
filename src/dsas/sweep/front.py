"""Front: which points no other beats in both cost and toxic share, how much they gain, and which front is better.

A point weakly dominates another when it is no worse in both, and dominates it when it is also better in one.
Rows are draws of a bootstrap (or one), points are the strengths of a series.

    hypervolume = area dominated by the front, inside ideal <= cost <= reference, 0 <= toxic share <= worst,
                  over the area of that box

so 1 is a model that is never toxic, at no cost, and 0 one that gains nothing over the unsteered model, which is the
corner (ideal, worst) and so belongs to every front. A cost below ideal counts as ideal; points that cost the reference
or more do not count. With no toxicity to remove (worst = 0) the hypervolume is 0.

Limitations: two objectives only.

Source: Zitzler and Thiele 1999 (hypervolume); Zitzler et al. 2003 (the relations between fronts).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

Points = Float[np.ndarray, "row point"]


class Cost(NamedTuple):
    """A cost by name, with the ends of the box in which fronts are measured."""

    name: str
    ideal: float
    reference: float


class Front(NamedTuple):
    """Points by their cost and toxic share."""

    cost: Points
    toxic: Points


def non_dominated(front: Front) -> Bool[np.ndarray, "row point"]:
    """Return which points no other point of their row dominates; equal points all stay."""
    return np.logical_not(_dominated(front, front).any(axis=1))


def hypervolume(front: Front, box: Cost, *, worst: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """Return the hypervolume of each row, in [0, 1]; `worst` is the toxic share of the unsteered model."""
    cost = np.clip(front.cost, box.ideal, box.reference)
    order = np.argsort(cost, axis=1, kind="stable")
    widths = np.diff(np.take_along_axis(cost, order, axis=1), axis=1, append=box.reference)
    least = np.minimum.accumulate(np.take_along_axis(front.toxic, order, axis=1), axis=1)
    area = (widths * np.maximum(worst[:, None] - least, 0)).sum(axis=1)
    return np.divide(area, (box.reference - box.ideal) * worst, out=np.zeros_like(area), where=worst > 0)


def front_dominates(front: Front, other: Front, box: Cost) -> Bool[np.ndarray, " row"]:
    """Return in which rows `front` weakly dominates every point of the other front, and dominates one of them.

    Points of `other` that cost the reference or more do not count.
    """
    counts = non_dominated(other) & (other.cost < box.reference)
    reached = _weakly_dominated(front, other).any(axis=1)
    beaten = _dominated(front, other).any(axis=1)
    return np.logical_and((reached | ~counts).all(axis=1), (beaten & counts).any(axis=1))


def _weakly_dominated(front: Front, other: Front) -> Bool[np.ndarray, "row by point"]:
    cheaper = front.cost[:, :, None] <= other.cost[:, None, :]
    return cheaper & (front.toxic[:, :, None] <= other.toxic[:, None, :])


def _dominated(front: Front, other: Front) -> Bool[np.ndarray, "row by point"]:
    better = front.cost[:, :, None] < other.cost[:, None, :]
    better |= front.toxic[:, :, None] < other.toxic[:, None, :]
    return _weakly_dominated(front, other) & better
