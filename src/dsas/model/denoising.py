"""Denoising steps: which step of a scheduler's schedule a call of the denoiser is.

    number = place // order          place: the scheduler's own index, order: its model calls per step

Where the scheduler has no index yet (before its first step), or never has one, the denoiser's timestep is looked up in
the schedule. Families write it differently: unchanged, divided by the number of training steps, or counted from the
other end. PNDM repeats timesteps: the second call at the same one belongs to the step that it warms up, and each of its
Runge-Kutta steps takes four calls.

Limitations: a timestep that fits several places of the schedule counts as the first of them, or as unknown.
"""

from typing import Any

import torch
from torch import Tensor

from dsas.model.foreign import Foreign
from dsas.model.forward_pass import Denoising

_CLOSE = 2.0**-8  # relative tolerance: timesteps may come in bfloat16


def denoising_of(scheduler: Foreign, timestep: Any, *, running: bool = True) -> Denoising | None:
    """Return which denoising step of the schedule a call with this timestep is, or None if unknown.

    running: whether the scheduler's pipeline is known to run; otherwise its index must fit the timestep.
    """
    levels = getattr(scheduler, "timesteps", None)
    if levels is None or timestep is None or not len(levels):
        return None
    levels = torch.as_tensor(levels).double().cpu()
    now = float(torch.as_tensor(timestep).double().max())
    if not hasattr(scheduler, "step_index"):
        return _without_index(scheduler, levels, now)
    config: Foreign = getattr(scheduler, "config", {})
    fitting = _fitting(levels, now, float(config.get("num_train_timesteps") or 1000))
    place, order = _index(scheduler), int(getattr(scheduler, "order", 1))
    if place is None or not 0 <= place < len(levels) or not (running or place in fitting):
        places = {int((levels == levels[place]).nonzero()[0]) for place in fitting}
        if not places:
            return None
        if 0 not in places and len(places) > 1:
            return None
        place = min(places)
    return Denoising(place // order, -(-len(levels) // order), place)


def _index(scheduler: Foreign) -> int | None:
    place = scheduler.step_index
    return getattr(scheduler, "begin_index", None) if place is None else place


def _fitting(levels: Tensor, now: float, trained: float) -> list[int]:
    """Return the places with this timestep, in any of the ways in which families write it."""
    places = list[int]()
    for value in (now, now * trained, (1 - now) * trained):
        distance = (levels - value).abs()
        near = distance == distance.min()
        close = distance <= _CLOSE * levels.abs().clamp(min=1e-3)
        places += [int(place) for place in (near & close).nonzero()]
    return places


def _without_index(scheduler: Foreign, levels: Tensor, now: float) -> Denoising | None:
    counter: int = getattr(scheduler, "counter", -1)  # counted in calls, as in PNDM
    counts = 0 <= counter < len(levels) and float(levels[counter]) == now
    runge, order = len(scheduler.prk_timesteps) if counter >= 0 else 0, 4
    if runge:  # a timestep may be the end of one step and the beginning of the next
        number = counter // order if counter < runge else runge // order + counter - runge
        return Denoising(number, runge // order + len(levels) - runge, counter) if counts else None
    steps = torch.unique_consecutive(levels)
    distance = (steps - now).abs()
    number = int(distance.argmin())
    if float(distance[number]) > _CLOSE * max(1.0, abs(now)):
        return None
    return Denoising(number, len(steps), counter if counts else number)
