"""Release cost: how many minutes a release check will take, from two short draws of one batch.

    draw of a kind of request  =  batches * (first * tokens of its prompts / tokens of the timed prompts + later * step)
    reading its answers        =  batches * first * (its tokens, answers included) / tokens of the timed prompts
    measure alone              =  its draws + its readings          together: each draw once, and all readings

first: the seconds of a batch's prompts and first tokens. step: those of each token after it. later: their number.

Limitations: answers that end early take less time; the machine is assumed to stay as busy as in the timed draws.
"""

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

from dsas.evaluation.release_limits import RELEASE_LIMITS

STEPS = 8  # tokens after the first that are timed
UNREAD = ("json", "repetition")  # computed from the answers alone, without the model
UNSTEERED_ONLY = ("kl", "perplexity")  # read the unsteered model's answers, and need no others


class Asked(NamedTuple):
    """What a kind of request has: its batches, and the tokens of its prompts and of all answers at their longest."""

    batches: int
    prompt_tokens: int
    answer_tokens: int


class BatchTimes(NamedTuple):
    """Seconds of one batch: its prompts with the first new token, and each token after it.

    tokens: how many its prompts have.
    """

    tokens: int
    first: float
    step: float

    def draw(self, asked: Asked, new_tokens: int) -> float:
        """Return the seconds of answering a kind of request."""
        per_batch = asked.prompt_tokens / asked.batches
        return asked.batches * (self.first * per_batch / self.tokens + (new_tokens - 1) * self.step)

    def read(self, asked: Asked) -> float:
        """Return the seconds of reading requests with their answers once."""
        return self.first * (asked.prompt_tokens + asked.answer_tokens) / self.tokens


class ReleaseMinutes(NamedTuple):
    """Minutes of each measure alone, by its name, and of all together, which share their answers."""

    alone: dict[str, float]
    together: float


def batch_times(draw: Callable[[int], object], tokens: int) -> BatchTimes:
    """Return the times of a batch. draw: a function that draws a number of new tokens. tokens: those of its prompts."""
    draw(1)  # what is done once is not counted

    def seconds(new: int) -> float:
        begun = time.perf_counter()
        draw(new)
        return time.perf_counter() - begun

    first = seconds(1)
    return BatchTimes(max(1, tokens), first, max(0.0, seconds(1 + STEPS) - first) / STEPS)


def release_minutes(
    limits: Mapping[str, float], asked: Mapping[str, Asked], times: Mapping[bool, BatchTimes], new_tokens: int
) -> ReleaseMinutes:
    """Return the minutes of the measures that have limits. asked: by kind of request; times: by whether steered."""
    alone: dict[str, float] = {}
    draws: dict[tuple[str, bool], float] = {}
    reading = 0.0
    for name in limits:
        kind = RELEASE_LIMITS[name].asks
        needed = (False,) if name in UNSTEERED_ONLY else (False, True)
        own = {(kind, steered): times[steered].draw(asked[kind], new_tokens) for steered in needed}
        read = 0.0 if name in UNREAD else 2 * times[False].read(asked[kind])
        alone[name] = (sum(own.values()) + read) / 60
        draws.update(own)
        reading += read
    return ReleaseMinutes(alone, (sum(draws.values()) + reading) / 60)
