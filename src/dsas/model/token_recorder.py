"""Token recorder: keeps what was applied, pass by pass, with the sequences that ran.

The record lives as long as its sequences' cache, and the last sequences of each thread live until that thread runs
others. Only small tensors (row, token) are kept, and nothing is moved off the device before somebody asks.
"""

import threading
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import StateError
from dsas.model.by_thread import ByThread
from dsas.model.forward_pass import ForwardPass
from dsas.model.image_trace import Maps
from dsas.model.sequence import NOTHING, Found, PackedSequences, Passed, Sequences
from dsas.model.site_summary import NOT_RECORDED, SiteSummary
from dsas.model.strength import per_request, per_row
from dsas.model.token_trace import Trace, stacked

ONE = torch.ones(1, 1, 1)


class TokenRecorder:
    """Collects applied strengths pass by pass."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = tuple(sites)
        self._local = threading.local()  # what was found in the pass that runs in a thread, and of which shape it is
        self._ran: ByThread[Sequences | PackedSequences] = ByThread()

    def has_passes(self, thread: threading.Thread | None = None) -> bool:
        """Whether anything was recorded that `trace` would return."""
        sequences = self._ran.of(thread)
        return sequences is not None and any(one.passes() for one in sequences.each)

    def begin(self, step: ForwardPass | None) -> None:
        """Open the record of one pass; None closes the last one, and what comes is recorded nowhere."""
        here = self._local
        if step is None:
            here.found = None
            return
        found = here.found = [NOTHING] * len(self._sites)
        here.shape, here.packing = (step.batch, step.tokens), step.packing
        for one in step.history.each:
            kept = one.keep()
            kept.found = found
            if kept.ids is not None and kept.ids.untyped_storage().nbytes() > 2 * kept.ids.nbytes:
                kept.ids = kept.ids.clone()  # a view would keep everything alive
        self._ran.put(step.history)

    def restart(self) -> None:
        """Do nothing: a new sequence is told by its cache."""

    def add(self, site: int, step: ForwardPass | None, *values: Float[Tensor, "batch token _"]) -> None:
        """Record what site number `site` did in the open pass: what it applied, and then, if kept, details.

        Those are the regulator, the dose and, of a regulator that adds evidence up, what each token says by itself.

        Nothing is kept without an open pass, or of values of another shape than its tokens have.
        """
        here = self._local
        found: list[Found] | None = getattr(here, "found", None)
        if found is None:
            return
        if step is None and here.packing is not None:
            values = tuple([here.packing.take(value) for value in values])
        if all(tuple(value.shape[:2]) == here.shape for value in values):
            _keep(found, site, 1.0, tuple([value.detach() if value.requires_grad else value for value in values]))

    def add_gain(self, site: int, factor: float, gain: Float[Tensor, "batch token 1"] | None) -> None:
        """Record, as `add` would, that site number `site` applied factor x gain, where None is 1 for every token."""
        here = self._local
        found: list[Found] | None = getattr(here, "found", None)
        if found is None:
            return
        value = ONE if gain is None else gain if here.packing is None else here.packing.take(gain)
        if value.requires_grad:
            value = value.detach()
        if found[site] is NOTHING:  # the short way of nearly every call
            found[site] = Found(factor, (value,))
        else:
            _keep(found, site, factor, (value,))

    def trace(
        self, strength: Float[Tensor, " row"], *, start: int = 0, thread: threading.Thread | None = None
    ) -> Trace:
        """Return what was recorded of the last sequences, from the pass that begins at cache position `start` on.

        strength: as asked for, one or one per row. Raises StateError when nothing was recorded.
        """
        sequences = self._ran.of(thread)
        each = [] if sequences is None else [one for one in sequences.each if _passes(one, start)]
        each.sort(key=lambda one: one.number or 0)  # requests come in any order
        if not each:
            raise StateError(
                "nothing was recorded: run the model once while steering is applied with record=True, and ask the "
                "thread that ran it, or for it by trace(thread=...) (compiled code records nothing)"
            )
        numbers = [one.number for one in each if one.number is not None]
        asked = per_request(strength, numbers) if numbers else per_row(strength, sum(one.rows for one in each))
        rows = asked.split([one.rows for one in each])
        return stacked([self._trace(one, own, start) for one, own in zip(each, rows, strict=True)])

    def maps(self, strength: Float[Tensor, " row"], *, thread: threading.Thread | None = None) -> Maps:
        """Raise StateError: there are no pictures here."""
        raise StateError("a model of texts draws no pictures: use trace() instead of maps()")

    def summaries(
        self, strength: Float[Tensor, " row"], weights: Sequence[float], thread: threading.Thread | None = None
    ) -> list[SiteSummary]:
        """Return what happened at each site in the last sequences; weights: each site's own."""
        trace = self.trace(strength, thread=thread)
        assert trace.strength is not None
        found = []
        for site, weight in enumerate(weights):
            known = trace.real & ~trace.strengths[site].isnan()
            values = trace.strengths[site][known]
            least = (0.5 * weight * trace.strength).view(-1, 1).expand(known.shape)[known]
            known_any = bool(known.any())
            found.append(SiteSummary(float(values.mean()), int((values > least).sum())) if known_any else NOT_RECORDED)
        return found

    def _trace(self, one: Sequences, strength: Float[Tensor, " row"], start: int) -> Trace:
        passes = _passes(one, start)
        first, total = passes[0][0].start, passes[-1][0].end
        kept = max((len(found.values) for entry, _ in passes for found in entry.found), default=0)
        measured = torch.full((max(kept, 1), len(self._sites), one.rows, total - first), float("nan"))
        known = [entry.ids is not None for entry, _ in passes]
        ids = torch.full((one.rows, total - first), -1)
        for entry, moved in passes:
            span = slice(entry.start - first, entry.end - first)

            def own(value: Tensor, entry: Passed = entry, moved: Tensor | None = moved) -> Tensor:
                value = value.cpu() if entry.rows is None or len(value) == 1 else value.cpu()[entry.rows]
                if moved is not None and len(value) > 1:
                    value = value[moved]
                return value[:, : entry.tokens] if value.shape[1] > 1 else value

            if entry.ids is not None:
                ids[:, span] = entry.ids.cpu()[:, : entry.tokens] if moved is None else own(entry.ids)
            for site, (factor, values, _) in enumerate(entry.found):
                for kind, value in enumerate(values):
                    measured[kind, site, :, span] = factor * own(value.float().mean(-1))
        real = torch.ones(one.rows, total - first, dtype=torch.bool)
        if one.real is not None:
            real = one.real[:, first:total].cpu().expand_as(real)
        measured = measured.masked_fill(~real, 0.0)
        detail = (measured[1], measured[2]) if kept >= 3 else (None, None)
        alone = measured[3].where(~measured[3].isnan(), measured[1]) if kept > 3 else None
        return Trace(self._sites, measured[0], real, ids if any(known) else None, strength, *detail, alone)


def _passes(one: Sequences, start: int) -> list[tuple[Passed, Tensor | None]]:
    """Return the passes kept with what was recorded, from cache position `start` on."""
    return [(entry, moved) for entry, moved in one.passes() if entry.found and entry.start >= start]


def _keep(found: list[Found], site: int, factor: float, values: tuple[Tensor, ...]) -> None:
    """Keep the values of a site; of a module that runs several times in a pass, their mean."""
    before = found[site]
    if before is NOTHING:
        found[site] = Found(factor, values)
        return
    calls = before.calls + 1
    old, new = before.factor * before.calls / calls, factor / calls
    means = [one * old + other * new for one, other in zip(before.values, values, strict=True)]
    found[site] = Found(1.0, tuple(means), calls)
