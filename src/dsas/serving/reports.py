"""Reports: how strongly the tokens of a request were steered, summed on the device and read by the request's id.

    mean_strength  =  mean over the tokens that the model read and the Steering's sites of  strength * weight * h(t)
    above_half     =  number of these tokens with a mean over sites of  weight * h(t)  above 1/2

Every site adds its weight x regulator to a buffer of the step's tokens (`tokens`). After the model ran, the sums of all
watched requests are updated at once, and nothing leaves the device before a report is read. Tokens from the prefix
cache do not count, because the model did not read them; tokens that are read again after preemption count again. A
report is kept for `KEPT_FOR` seconds after the last token of its request.

Limitations: values of single tokens and sites, which `Steering.apply` records outside a server, are not reported; with
pipeline stages, `above_half` is missing, because each stage knows only its own sites.
"""

from collections.abc import Callable, Sequence
from time import monotonic
from typing import NamedTuple

import numpy as np
import torch

from dsas.files.json_values import JsonObject
from dsas.serving.tokens import TokenBuffers

MOST = 4096  # most requests that are kept; the oldest are forgotten first
KEPT_FOR = 600.0  # seconds


class Wanted(NamedTuple):
    """A request with a report: its id, the names of the acting Steerings, in order, and the number of sites of each."""

    request: str
    names: tuple[str, ...]
    sites: tuple[int, ...]


class _Kept:
    """Where the sums of a request are, how many tokens it has read, and when it read the last one."""

    def __init__(self, row: int, wanted: Wanted) -> None:
        self.row, self.wanted, self.tokens, self.last = row, wanted, 0, 0.0


class Reports:
    """The sums of requests, from their first step until long after their end."""

    def __init__(self, tokens: TokenBuffers, *, clock: Callable[[], float] = monotonic) -> None:
        self._tokens, self._clock = tokens, clock
        self._kept: dict[str, _Kept] = {}
        self._step: list[tuple[_Kept | None, int]] = []
        self._free = list(range(MOST, 0, -1))  # row 0 takes the tokens of requests without a report
        together = len(tokens.slots)
        device = tokens.slots.device
        self._sums = torch.zeros(MOST + 1, 2, together, dtype=torch.float64, device=device) if tokens.reports else None
        self._sites = torch.ones(MOST + 1, together, device=device)

    def begin(self, wanted: Sequence[Wanted | None], counts: np.ndarray) -> None:
        """Note a step: the i-th request has the next counts[i] tokens."""
        pairs = zip(wanted, counts.tolist(), strict=True)
        self._step = [(None if who is None else self._of(who), count) for who, count in pairs]

    def end(self) -> None:
        """Keep the sums of the step that ran; without one there is nothing to keep."""
        step, self._step = self._step, []
        if self._sums is None or not any(kept for kept, _ in step):
            return
        rows = torch.from_numpy(np.repeat([kept.row if kept else 0 for kept, _ in step], [n for _, n in step]))
        rows = rows.to(self._sites.device, non_blocking=True)
        values, strengths = (buffer[:, : len(rows)].T for buffer in (self._tokens.values, self._tokens.strengths))
        above = values / self._sites[rows] > 0.5
        self._sums.index_add_(0, rows, torch.stack([values * strengths, above.float()], dim=1).double())
        now = self._clock()
        for kept, count in step:
            if kept is not None:
                kept.tokens, kept.last = kept.tokens + count, now

    def read(self, request: str) -> JsonObject | None:
        """Return the report of a request, JSON-ready; None if it did not run here, or too long ago."""
        kept = self._kept.get(request)
        if kept is None or self._sums is None or not kept.tokens:
            return None
        applied, above = self._sums[kept.row].tolist()
        named = list(zip(kept.wanted.names, kept.wanted.sites, strict=True))
        return {
            "tokens": kept.tokens,
            "mean_strength": {
                name: total / (kept.tokens * sites) for (name, sites), total in zip(named, applied, strict=False)
            },
            "above_half": {name: int(count) for (name, _), count in zip(named, above, strict=False)},
        }

    def find(self, request: str) -> dict[str, JsonObject]:
        """Return the reports of all prompts of a request, by their ids: the client's "cmpl-1" has "cmpl-1-0"."""
        ids = [one for one in self._kept if one == request or one.startswith(f"{request}-")]
        return {one: report for one in ids if (report := self.read(one)) is not None}

    def _of(self, wanted: Wanted) -> _Kept:
        kept = self._kept.get(wanted.request)
        if kept is None:
            self._forget()
            kept = self._kept[wanted.request] = _Kept(self._free.pop(), wanted)
            kept.last = self._clock()
            if self._sums is not None:
                self._sums[kept.row] = 0.0
                self._sites[kept.row, : len(wanted.sites)] = torch.tensor(wanted.sites, dtype=torch.float32)
        return kept

    def _forget(self) -> None:
        """Forget requests that ended long ago, the oldest first, so that a row is free."""
        least = self._clock() - KEPT_FOR
        while self._kept:
            request, kept = next(iter(self._kept.items()))
            if self._free and kept.last >= least:
                break
            self._free.append(kept.row)
            del self._kept[request]


def combined(reports: Sequence[JsonObject | None], names: Sequence[str]) -> JsonObject:
    """Return the report of a request from those of the workers, each of which has the sum over its own layers.

    names: the names of all requested Steerings; those at strength 0 did nothing.
    """
    found = [report for report in reports if report is not None]
    tokens = max((report["tokens"] for report in found), default=0)
    told = {
        "tokens": tokens,
        "mean_strength": {name: sum(one["mean_strength"].get(name, 0.0) for one in found) for name in names},
    }
    if len(found) > 1:
        return told
    return {**told, "above_half": {name: found[0]["above_half"].get(name, 0) if found else 0 for name in names}}
