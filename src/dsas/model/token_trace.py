"""Trace: what was applied, per site, row and token, as recorded while the model ran.

    applied strength = strength * weight * regulator(t)
    relative dose    = |applied strength * (transform(t) - t)| / |t|          (Euclidean norms, in float32)

A `TokenRecorder` keeps, per thread, the passes since the row's beginning: a pass with an empty cache starts anew, a
pass that goes back in the cache (speculative decoding) overwrites what it redoes. Only small tensors (batch, token) are
kept, and nothing is moved off the device before `trace` is asked for.

Left out: how a trace is drawn (`dsas.views`), and how the text of its tokens is found (`dsas.explain`).
"""

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsas.errors import OptionError, StateError
from dsas.model.forward_pass import ForwardPass
from dsas.model.image_trace import Maps
from dsas.model.site_summary import NOT_RECORDED, SiteSummary
from dsas.model.strength import per_row
from dsas.views.explained import Comparison, Explained, NextTokens

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.text import Text

ONE = torch.ones(1, 1, 1)


class Trace(NamedTuple):
    """The applied strength (strength x site weight x regulator) of the last sequence each row ran.

    sites: names, in the order of the model. strengths: Float (site, row, token), >= 0, averaged over neurons where
    the regulator has one value per neuron; 0 on padding. real: Bool (row, token), False on padding.
    token_ids: Int (row, token), or None when the model was given embeddings. Under beam search a row is a beam.
    strength: Float (row), what was asked for. regulators, doses: Float (site, row, token), >= 0, 0 on padding; the
    regulator alone and the relative dose, or None when recorded without record="doses".
    tokens: the text of each row's real tokens; next_tokens, comparisons: one a row. What was not asked for is empty.
    """

    sites: tuple[str, ...]
    strengths: Float[Tensor, "site row token"]
    real: Bool[Tensor, "row token"]
    token_ids: Int[Tensor, "row token"] | None
    strength: Float[Tensor, " row"] | None = None
    regulators: Float[Tensor, "site row token"] | None = None
    doses: Float[Tensor, "site row token"] | None = None
    tokens: tuple[tuple[str, ...], ...] = ()
    next_tokens: tuple[NextTokens, ...] = ()
    comparisons: tuple[Comparison, ...] = ()

    def mean(self) -> Float[Tensor, " site"]:
        """Return the mean applied strength of every site over real tokens."""
        return (self.strengths * self.real).sum((1, 2)) / self.real.sum().clamp(min=1)

    def hits(self, threshold: float | Float[Tensor, " row"]) -> Int[Tensor, " site"]:
        """Return how many real tokens of every site got more than `threshold`: one number, or one per row."""
        least = torch.as_tensor(threshold).view(-1, 1)
        return ((self.strengths > least) & self.real).sum((1, 2))

    def row(self, number: int = 0) -> Explained:
        """Return what is known of one row's real tokens, as plain data. Raises OptionError when there is no such row.

        Without their text, tokens are shown by their number in the vocabulary, or as # when the model had embeddings.
        """
        if not 0 <= number < len(self.real):
            raise OptionError(f"expected a row from 0 to {len(self.real) - 1}, got {number}")
        real = self.real[number]
        measured = {"strength": self.strengths, "regulator": self.regulators, "dose": self.doses}
        values = {name: value[:, number, real] for name, value in measured.items() if value is not None}
        ids = None if self.token_ids is None else self.token_ids[number, real].tolist()
        shown = [f"[{token}]" for token in ids] if ids is not None else ["#"] * int(real.sum())
        return Explained(
            f"Text {number + 1}",
            self.tokens[number] if self.tokens else tuple(shown),
            self.sites,
            None if self.strength is None else float(self.strength[number]),
            values,
            self.next_tokens[number] if self.next_tokens else None,
            self.comparisons[number] if self.comparisons else None,
        )

    def rows(self) -> list[Explained]:
        """Return every row as plain data."""
        return [self.row(number) for number in range(len(self.real))]

    def frame(self) -> "DataFrame":
        """Return a pandas DataFrame with a line a row, token and site. Raises MissingExtraError without pandas."""
        from dsas.views.table import frame

        return frame(self.rows())

    def to_json(self) -> str:
        """Return everything as one JSON object: site names, and for each row tokens and (site, token) values."""
        return json.dumps({"sites": self.sites, "rows": [row.as_dict() for row in self.rows()]}, allow_nan=False)

    def plot(self, row: int = 0) -> "Figure":
        """Return a matplotlib figure, site by token, of the strength applied to one row.

        Raises OptionError when there is no such row, MissingExtraError without matplotlib.
        """
        from dsas.views.figure import strength_figure

        return strength_figure(self.row(row))

    def to_html(self, title: str = "What was steered") -> str:
        """Return a whole page that needs nothing else: coloured text, a map of tokens and sites, and their numbers."""
        from dsas.views.explanation import explanation_html

        return explanation_html(self.rows(), title=title)

    def _repr_html_(self) -> str:
        from dsas.views.explanation import framed

        return framed(self.to_html())

    def __rich__(self) -> "Text":
        from dsas.views.terminal import coloured

        return coloured(self.rows())


class TokenRecorder:
    """Collects applied strengths pass by pass, apart for each thread."""

    def __init__(self, sites: Sequence[str]) -> None:
        self._sites = tuple(sites)
        self._local = threading.local()

    @property
    def has_passes(self) -> bool:
        """Whether this thread has recorded a pass."""
        return bool(getattr(self._local, "passes", None))

    def begin(self, step: ForwardPass) -> None:
        """Open the record of one pass, forgetting the passes before it when it starts a new sequence."""
        passes = getattr(self._local, "passes", None)
        if passes is None or step.past == 0 or passes[-1][0].batch != step.batch:
            passes = self._local.passes = []
        passes.append((step, [(1.0, ())] * len(self._sites)))

    def restart(self) -> None:
        """Forget what was recorded, since a new run begins."""
        self._local.passes = []

    def add(self, site: int, step: ForwardPass | None, *values: Float[Tensor, "batch token _"]) -> None:
        """Record what site number `site` did in the open pass: what it applied, and then, if kept, regulator and dose.

        Without an open pass nothing is kept.
        """
        passes = getattr(self._local, "passes", None)
        if passes:
            values = tuple([value.detach() if value.requires_grad else value for value in values])
            passes[-1][1][site] = 1.0, values

    def add_gain(self, site: int, factor: float, gain: Float[Tensor, "batch token 1"] | None) -> None:
        """Record, as `add` would, that site number `site` applied factor x gain, where None is 1 for every token."""
        passes = getattr(self._local, "passes", None)
        if passes:
            gain = ONE if gain is None else gain.detach() if gain.requires_grad else gain
            passes[-1][1][site] = factor, (gain,)

    def trace(self, strength: Float[Tensor, " row"], *, start: int = 0) -> Trace:
        """Return what this thread recorded, from the pass that begins at cache position `start` on.

        strength: as asked for, one or one per row. Raises StateError when nothing was recorded.
        """
        passes = [made for made in getattr(self._local, "passes", None) or () if made[0].past >= start]
        if not passes:
            raise StateError(
                "nothing was recorded: run the model once, in this thread, while steering is applied with record=True "
                "(compiled code records nothing)"
            )
        last, _ = passes[-1]
        first, total = passes[0][0].past, last.past + last.tokens
        kept = max((len(values) for _, found in passes for _, values in found), default=0)
        measured = torch.zeros(3, len(self._sites), last.batch, total - first)
        real = torch.zeros(last.batch, total - first, dtype=torch.bool)
        ids = None if last.token_ids is None else torch.zeros(last.batch, total - first, dtype=torch.long)
        for step, found in passes:
            span = slice(step.past - first, min(step.past + step.tokens, total) - first)
            count = span.stop - span.start
            real[:, span] = step.real[:, :count].cpu()
            if ids is not None and step.token_ids is not None:
                ids[:, span] = step.token_ids[:, :count].cpu()
            for site, (factor, values) in enumerate(found):
                for kind, value in enumerate(values):
                    measured[kind, site, :, span] = factor * value.float().mean(-1)[:, :count].cpu()
        strengths, regulators, doses = measured * real
        detail = (regulators, doses) if kept == 3 else (None, None)
        return Trace(self._sites, strengths, real, ids, per_row(strength, last.batch), *detail)

    def maps(self, strength: Float[Tensor, " row"]) -> Maps:
        """Raise StateError: there are no pictures here."""
        raise StateError("a model of texts draws no pictures: use trace() instead of maps()")

    def summaries(self, strength: Float[Tensor, " row"], weights: Sequence[float]) -> list[SiteSummary]:
        """Return what happened at each site in this thread's last sequence; weights: each site's own."""
        trace = self.trace(strength)
        assert trace.strength is not None
        fired = {site for _, found in self._local.passes for site, (_, values) in enumerate(found) if values}
        means = trace.mean()
        hits = [trace.hits(0.5 * weight * trace.strength)[site] for site, weight in enumerate(weights)]
        return [
            SiteSummary(float(means[site]), int(hits[site])) if site in fired else NOT_RECORDED
            for site in range(len(weights))
        ]
