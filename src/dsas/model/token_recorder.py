"""Token recorder: keeps what was applied, pass by pass, with the sequences that ran.

The record lives as long as its sequences' cache, and the last sequences of each thread live until that thread runs
others. Only small tensors (row, token) are kept, and nothing is moved off the device before the trace is asked for.
"""

import threading
from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dsas.errors import StateError
from dsas.model.by_thread import ByThread
from dsas.model.forward_pass import ForwardPass
from dsas.model.image_trace import Maps
from dsas.model.passed import NOTHING, Found, Passed
from dsas.model.sequence import PackedSequences, Sequences
from dsas.model.site_summary import NOT_RECORDED, Outside, SiteSummary
from dsas.model.strength import per_request, per_row
from dsas.model.token_trace import Trace, stacked

ONE = torch.ones(1, 1, 1)


class TokenRecorder:
    """Collects applied strengths pass by pass."""

    def __init__(
        self, sites: Sequence[str], media: Mapping[int, str] = MappingProxyType({}), *, ahead: int = 0
    ) -> None:
        """Record what these sites do; media: as in `Trace`. ahead: tokens that the decoder puts before a text."""
        self._sites, self._media, self._ahead = tuple(sites), media, ahead
        # What was found in the pass that runs in a thread, inside of the decoder and outside, and of which shape it is.
        self._local = threading.local()
        self._ran: ByThread[Sequences | PackedSequences] = ByThread()

    def has_passes(self, thread: threading.Thread | None = None) -> bool:
        """Whether anything was recorded that `trace` would return."""
        sequences = self._ran.of(thread)
        return sequences is not None and any(one.passes() for one in sequences.each)

    def begin(self, step: ForwardPass | None) -> None:
        """Open the record of one pass; None closes the last one, and nothing is recorded after it."""
        here = self._local
        if step is None:
            here.found = None
            self.restart()
            return
        if getattr(here, "is_taken", True):
            here.outside = {}
        step.history.each[0].keep().outside, here.is_taken = here.outside, True
        found = here.found = [NOTHING] * len(self._sites)
        here.shape, here.packing = (step.batch, step.tokens), step.packing
        for one in step.history.each:
            kept = one.keep()
            kept.found = found
            if kept.ids is not None and kept.ids.untyped_storage().nbytes() > 2 * kept.ids.nbytes:
                kept.ids = kept.ids.clone()  # a view would keep everything alive
        self._ran.put(step.history)

    def restart(self) -> None:
        """Assign records from outside the decoder to its next pass, because the model or `generate` was called anew."""
        here = self._local
        if getattr(here, "is_taken", True):
            here.outside, here.is_taken = {}, False

    def add(self, site: int, step: ForwardPass | None, *values: Float[Tensor, "batch token _"]) -> None:
        """Record what site number `site` did in the open pass: what it applied, and then, if kept, details.

        The details are the regulator, the dose and, for a regulator that accumulates evidence, that of each token by
        itself. Nothing is kept without an open pass, or if the shape is not that of its tokens.
        """
        here = self._local
        found: list[Found] | None = getattr(here, "found", None)
        if found is None:
            return
        if step is None and here.packing is not None:
            values = tuple([here.packing.take(value) for value in values])
        if self._ahead:
            columns = self._ahead + here.shape[1]
            values = tuple([one[:, self._ahead :] if one.shape[1] == columns else one for one in values])
        if all(tuple(value.shape[:2]) == here.shape for value in values):
            _keep(found, site, 1.0, tuple([value.detach() if value.requires_grad else value for value in values]))

    def add_outside(self, site: int, values: Float[Tensor, "batch token _"], real: Bool[Tensor, "batch token"]) -> None:
        """Record what site number `site`, which is outside the decoder, applied in one call of its module.

        It belongs to the decoder's running or last pass or, if the model, its encoder or `generate` was called since
        that pass began, to the next one.
        """
        if not hasattr(self._local, "outside"):
            self.restart()
        found = Outside(values.detach().float().mean(-1).masked_fill(~real, 0.0), real)
        self._local.outside.setdefault(site, []).append(found)

    def add_gain(self, site: int, factor: float, gain: Float[Tensor, "batch token 1"] | None) -> None:
        """Record, like `add`, that site number `site` applied factor x gain, where None is 1 for every token."""
        here = self._local
        found: list[Found] | None = getattr(here, "found", None)
        if found is None:
            return
        value = ONE if gain is None else gain if here.packing is None else here.packing.take(gain)
        if value.requires_grad:
            value = value.detach()
        if found[site] is NOTHING:  # the fast path of nearly every call
            found[site] = Found(factor, (value,))
        else:
            _keep(found, site, factor, (value,))

    def trace(
        self, strength: Float[Tensor, " row"], *, start: int = 0, thread: threading.Thread | None = None
    ) -> Trace:
        """Return the record of the last sequences, beginning with the pass at cache position `start`.

        strength: as given to apply(), one or one per row. Raises StateError when nothing was recorded.
        """
        sequences = self._ran.of(thread)
        each = [] if sequences is None else [one for one in sequences.each if _passes(one, start)]
        each.sort(key=lambda one: one.number or 0)  # requests come in any order
        if not each:
            raise StateError(
                "nothing was recorded: run the model once while steering is applied with record=True, and ask in "
                "the thread that ran it, or pass trace(thread=...) (compiled code records nothing)"
            )
        numbers = [one.number for one in each if one.number is not None]
        asked = per_request(strength, numbers) if numbers else per_row(strength, sum(one.rows for one in each))
        rows = asked.split([one.rows for one in each])
        return stacked([self._trace(one, own, start) for one, own in zip(each, rows, strict=True)])

    def prompt_end(self) -> int:
        """Return the column where the prompt of the last sequences ends. Raises StateError when none was recorded."""
        sequences = self._ran.of(None)
        if sequences is None:
            raise StateError("nothing was recorded: run the model once while steering is applied with record=True")
        ends = [one.turn.end if one.turn.end is not None else one.current.end for one in sequences.each]
        return max(ends)

    def read_end(self) -> int:
        """Return the column after the last token that the last sequences read. Raises StateError as `prompt_end`."""
        sequences = self._ran.of(None)
        if sequences is None:
            raise StateError("nothing was recorded: run the model once while steering is applied with record=True")
        return max(one.current.end for one in sequences.each)

    def maps(self, strength: Float[Tensor, " row"], *, thread: threading.Thread | None = None) -> Maps:
        """Raise StateError: a language model draws no pictures."""
        raise StateError("a model of texts draws no pictures: use trace() instead of maps()")

    def summaries(
        self, strength: Float[Tensor, " row"], weights: Sequence[float], thread: threading.Thread | None = None
    ) -> list[SiteSummary]:
        """Return what happened at each site in the last sequences; weights: each site's own."""
        trace = self.trace(strength, thread=thread)
        assert trace.strength is not None
        found = []
        for site, weight in enumerate(weights):
            calls = trace.outside.get(self._sites[site])
            if calls is None:
                known = trace.real & ~trace.strengths[site].isnan()
                calls = (Outside(trace.strengths[site], known),)
            found.append(_summary(calls, 0.5 * weight * trace.strength))
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
        ids = ids if any(known) else None
        return Trace(self._sites, measured[0], real, ids, strength, *detail, alone, self._outside(passes), self._media)

    def _outside(self, passes: Sequence[tuple[Passed, Tensor | None]]) -> dict[str, tuple[Outside, ...]]:
        """Return what the sites outside the decoder did, by name."""
        found: dict[str, tuple[Outside, ...]] = {}
        for entry, _ in passes:
            for site, calls in entry.outside.items():
                here = tuple([Outside(*[value.cpu() for value in call]) for call in calls])
                found[self._sites[site]] = (*found.get(self._sites[site], ()), *here)
        return found


def _passes(one: Sequences, start: int) -> list[tuple[Passed, Tensor | None]]:
    """Return the recorded passes, from cache position `start` on."""
    return [(entry, moved) for entry, moved in one.passes() if entry.found and entry.start >= start]


def _summary(calls: Sequence[Outside], least: Float[Tensor, " row"]) -> SiteSummary:
    """Return the mean of what was applied, and how often it exceeded `least`, one number or one per row.

    The count is None if `least` is per row and the calls have other rows.
    """
    values = torch.cat([call.strengths[call.real] for call in calls])
    if not len(values):
        return NOT_RECORDED
    alike = bool((least == least[0]).all())
    hits = 0
    for call in calls:
        if not alike and len(call.real) != len(least):
            return SiteSummary(float(values.mean()), None)
        own = (least[:1] if alike else least).view(-1, 1)
        hits += int(((call.strengths > own) & call.real).sum())
    return SiteSummary(float(values.mean()), hits)


def _keep(found: list[Found], site: int, factor: float, values: tuple[Tensor, ...]) -> None:
    """Keep the values of a site; for a module that runs several times in a pass, their mean."""
    before = found[site]
    if before is NOTHING:
        found[site] = Found(factor, values)
        return
    calls = before.calls + 1
    old, new = before.factor * before.calls / calls, factor / calls
    means = [one * old + other * new for one, other in zip(before.values, values, strict=True)]
    found[site] = Found(1.0, tuple(means), calls)
