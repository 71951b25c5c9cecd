"""Trace: the strength that was applied, per site, row and token, as recorded while the model ran.

A `Recorder` keeps, per thread, the passes since the row's beginning: a pass with an empty cache starts anew, a pass
that goes back in the cache (speculative decoding) overwrites what it redoes. Only small tensors (batch, token) are
kept, and nothing is moved off the device before `trace` is asked for.

Left out: text, pages and pictures.
"""

import threading
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsas.errors import StateError
from dsas.step import Step


class Trace(NamedTuple):
    """The applied strength (strength x site weight x regulator) of the last sequence each row ran.

    sites: names, in the order of the model. strengths: Float (site, row, token), >= 0, averaged over neurons where
    the regulator has one value per neuron; 0 on padding. real: Bool (row, token), False on padding.
    token_ids: Int (row, token), or None when the model was given embeddings. Under beam search a row is a beam.
    """

    sites: tuple[str, ...]
    strengths: Float[Tensor, "site row token"]
    real: Bool[Tensor, "row token"]
    token_ids: Int[Tensor, "row token"] | None

    def mean(self) -> Float[Tensor, " site"]:
        """Return the mean applied strength of every site over real tokens."""
        return (self.strengths * self.real).sum((1, 2)) / self.real.sum().clamp(min=1)

    def hits(self, threshold: float | Float[Tensor, " row"]) -> Int[Tensor, " site"]:
        """Return how many real tokens of every site got more than `threshold`: one number, or one per row."""
        least = torch.as_tensor(threshold).view(-1, 1)
        return ((self.strengths > least) & self.real).sum((1, 2))


class Recorder:
    """Collects applied strengths pass by pass, apart for each thread."""

    def __init__(self, sites: Sequence[str]) -> None:
        """Record the named sites; their order is that of `Trace.sites`."""
        self._sites = tuple(sites)
        self._local = threading.local()

    @property
    def has_passes(self) -> bool:
        """Whether this thread has recorded a pass."""
        return bool(getattr(self._local, "passes", None))

    def begin(self, step: Step) -> None:
        """Open the record of one pass, forgetting the passes before it when it starts a new sequence."""
        passes = getattr(self._local, "passes", None)
        if passes is None or step.past == 0 or passes[-1][0].batch != step.batch:
            passes = self._local.passes = []
        passes.append((step, [None] * len(self._sites)))

    def add(self, site: int, applied: Float[Tensor, "batch token gain"]) -> None:
        """Record what site number `site` applied in the open pass; without an open pass nothing is kept."""
        passes = getattr(self._local, "passes", None)
        if passes:
            passes[-1][1][site] = applied.detach()

    def trace(self) -> Trace:
        """Return what this thread recorded. Raises StateError when that is nothing."""
        passes = getattr(self._local, "passes", None)
        if not passes:
            raise StateError(
                "nothing was recorded: run the model once, in this thread, while steering is applied with record=True "
                "(compiled code records nothing)"
            )
        last, _ = passes[-1]
        first, total = passes[0][0].past, last.past + last.tokens
        strengths = torch.zeros(len(self._sites), last.batch, total - first)
        real = torch.zeros(last.batch, total - first, dtype=torch.bool)
        ids = None if last.token_ids is None else torch.zeros(last.batch, total - first, dtype=torch.long)
        for step, applied in passes:
            span = slice(step.past - first, min(step.past + step.tokens, total) - first)
            count = span.stop - span.start
            real[:, span] = step.real[:, :count].cpu()
            if ids is not None and step.token_ids is not None:
                ids[:, span] = step.token_ids[:, :count].cpu()
            for site, value in enumerate(applied):
                if value is not None:
                    strengths[site, :, span] = value.float().mean(-1)[:, :count].cpu()
        return Trace(self._sites, strengths * real, real, ids)
