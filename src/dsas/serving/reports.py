"""Reports: how strongly the tokens of a request were steered, for requests that ask, added up on the device.

    mean_strength  =  mean over the tokens that the model read and the Steering's sites of  strength * weight * h(t)

Every site adds what it applies to a buffer of the step's tokens (`tokens`). After the model ran, one sum a request that
asked is kept, and nothing leaves the device before it is read. Tokens that came from the prefix cache were not read,
and tokens that were read again, after a request had to make room for others, count again.

Limitations: single tokens and sites, which `Steering.apply` records outside of a server, are not told.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dsas.files.json_values import JsonObject
from dsas.serving.tokens import TokenBuffers

MOST = 4096  # requests that are kept; of more, the oldest are forgotten: whoever asked has left


class Wanted(NamedTuple):
    """A request that asked: its id, the names of the Steerings that act, in order, and at how many sites each does."""

    request: str
    names: tuple[str, ...]
    sites: tuple[int, ...]


class Reports:
    """The sums of the requests that asked, from the step in which they begin until they are read."""

    def __init__(self, tokens: TokenBuffers) -> None:
        self._tokens = tokens
        self._kept: dict[Wanted, tuple[torch.Tensor, int]] = {}
        self._step: list[tuple[Wanted, int, int]] = []

    def begin(self, wanted: Sequence[Wanted | None], counts: np.ndarray) -> None:
        """Take note of a step: the i-th request has the next counts[i] tokens."""
        ends = np.cumsum(counts).tolist()
        parts = zip(wanted, [0, *ends[:-1]], ends, strict=True)
        self._step = [(who, start, end) for who, start, end in parts if who is not None]

    def end(self) -> None:
        """Keep the sums of the step that ran; without one there is nothing to keep."""
        for who, start, end in self._step:
            added, read = self._tokens.applied[:, start:end].sum(1, dtype=torch.float64), end - start
            if who in self._kept:
                added, read = added + self._kept[who][0], read + self._kept[who][1]
            self._kept[who] = (added, read)
        self._step = []
        while len(self._kept) > MOST:
            del self._kept[next(iter(self._kept))]

    def read(self, request: str) -> JsonObject | None:
        """Return the report of a request, JSON-ready, and forget it; None when nothing of it ran here."""
        for who in [who for who in self._kept if who.request == request]:
            sums, tokens = self._kept.pop(who)
            means = [total / (tokens * sites) for total, sites in zip(sums.tolist(), who.sites, strict=False)]
            return {"tokens": tokens, "mean_strength": dict(zip(who.names, means, strict=True))}
        return None


def combined(reports: Sequence[JsonObject | None], names: Sequence[str]) -> JsonObject:
    """Return the report of a request from those of the workers, each of which has the sum over its own layers alone.

    names: of all the Steerings that were asked for; those at strength 0 did nothing.
    """
    found = [report for report in reports if report is not None]
    tokens = max((report["tokens"] for report in found), default=0)
    return {
        "tokens": tokens,
        "mean_strength": {name: sum(one["mean_strength"].get(name, 0.0) for one in found) for name in names},
    }
