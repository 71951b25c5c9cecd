"""Trace: what was applied, per site, row and token, as recorded while the model ran.

    applied strength = strength * weight * regulator(t)
    relative dose    = |applied strength * (transform(t) - t)| / |t|          (Euclidean norms, in float32)

`dsas.model.token_recorder` records traces, `dsas.views` draws them, and `dsas.explaining` finds the text of their
tokens.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import pad

from dsas.errors import OptionError, StateError
from dsas.files.json_values import json_text
from dsas.model.foreign import Foreign
from dsas.model.site_summary import Outside
from dsas.views.explained import Comparison, Explained, NextTokens, Turn

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame
    from rich.text import Text


class Trace(NamedTuple):
    """The applied strength (strength x site weight x regulator), with its sign, of the last sequence of each row.

    sites: names, in the order of the model. strengths: Float (site, row, token), averaged over neurons where
    the regulator has one value per neuron, and over the calls of a module that runs several times per pass; 0 on
    padding, and nan where nothing was recorded. real: Bool (row, token), False on padding.
    token_ids: Int (row, token), -1 where the model was given embeddings, None when it always was. Under beam search a
    row is a beam; in packed rows, a row is one text. strength: Float (row), as given to apply(). regulators, doses:
    Float (site, row, token), >= 0, 0 on padding; the regulator alone and the relative dose, or None when recorded
    without record="doses". alone: the same for a regulator that accumulates evidence over a row (`dsas.Evidence`): each
    token by itself.
    outside: by name of a site outside the decoder (an encoder, a vision or audio tower), what it did in each call of
    its module, first to last; it has other tokens, so it is not in `strengths`. media: placeholder tokens of pictures,
    videos and sound, and how they are shown.
    tokens: the text of each row's real tokens; next_tokens, comparisons: one per row. Fields that were not asked for
    are empty.
    turns, counted: one per row: the role whose turn each real token is in, and whether it counts as the answer; empty
    for texts.
    """

    sites: tuple[str, ...]
    strengths: Float[Tensor, "site row token"]
    real: Bool[Tensor, "row token"]
    token_ids: Int[Tensor, "row token"] | None
    strength: Float[Tensor, " row"] | None = None
    regulators: Float[Tensor, "site row token"] | None = None
    doses: Float[Tensor, "site row token"] | None = None
    alone: Float[Tensor, "site row token"] | None = None
    outside: Mapping[str, tuple[Outside, ...]] = MappingProxyType({})
    media: Mapping[int, str] = MappingProxyType({})
    tokens: tuple[tuple[str, ...], ...] = ()
    next_tokens: tuple[NextTokens, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    turns: tuple[tuple[Turn, ...], ...] = ()
    counted: tuple[tuple[bool, ...], ...] = ()

    def mean(self) -> Float[Tensor, " site"]:
        """Return the mean applied strength of every site over real tokens."""
        return (self.strengths * self.real).sum((1, 2)) / self.real.sum().clamp(min=1)

    def hits(self, threshold: float | Float[Tensor, " row"]) -> Int[Tensor, " site"]:
        """Return how many real tokens got more than `threshold` at every site, in absolute values."""
        least = torch.as_tensor(threshold).view(-1, 1)
        return ((self.strengths.abs() > least.abs()) & self.real).sum((1, 2))

    def row(self, number: int = 0) -> Explained:
        """Return all that was recorded of a row's real tokens, as plain data. Raises OptionError for a missing row.

        Sites without a record are left out. Raises StateError if no site has one. Without their text, tokens are shown
        by their number in the vocabulary, or as # if the model was given embeddings.
        """
        if not 0 <= number < len(self.real):
            raise OptionError(f"expected a row from 0 to {len(self.real) - 1}, got {number}")
        real = self.real[number]
        measured = {
            "strength": self.strengths.abs(),
            "regulator": self.regulators,
            "dose": self.doses,
            "alone": self.alone,
        }
        known = ~self.strengths[:, number, real].isnan().all(-1)
        if not bool(known.any()):
            elsewhere = f"; what was recorded at {', '.join(self.outside)} is in trace.outside" if self.outside else ""
            raise StateError(
                f"nothing was recorded for these tokens: every site of this Steering reads other tokens{elsewhere}"
            )
        values = {name: value[known, number][:, real] for name, value in measured.items() if value is not None}
        ids = self.token_ids[number, real].tolist() if self.token_ids is not None else [-1] * int(real.sum())
        shown = [self.media.get(token, f"[{token}]") if token >= 0 else "#" for token in ids]
        return Explained(
            f"Text {number + 1}",
            self.tokens[number] if self.tokens else tuple(shown),
            tuple(site for site, is_known in zip(self.sites, known.tolist(), strict=True) if is_known),
            None if self.strength is None else float(self.strength[number]),
            values,
            self.next_tokens[number] if self.next_tokens else None,
            self.comparisons[number] if self.comparisons else None,
            self.turns[number] if self.turns else (),
            self.counted[number] if self.counted else (),
        )

    def rows(self) -> list[Explained]:
        """Return every row as plain data."""
        return [self.row(number) for number in range(len(self.real))]

    def frame(self) -> "DataFrame":
        """Return a pandas DataFrame with a line per row, token and site. Raises MissingExtraError without pandas."""
        from dsas.views.table import frame

        return frame(self.rows())

    def to_json(self) -> str:
        """Return everything as one JSON object: site names, and for each row tokens and (site, token) values.

        "outside", where there is any: by site, a list of calls, each the values of every row's real tokens.
        """
        rows = self.rows()
        told = {"sites": rows[0].sites if rows else self.sites, "rows": [row.as_dict() for row in rows]}
        if self.outside:
            told["outside"] = {site: [_listed(call) for call in calls] for site, calls in self.outside.items()}
        return json_text(told)

    def plot(self, row: int = 0) -> "Figure":
        """Return a matplotlib figure, site by token, of the strength applied to one row.

        Raises OptionError when there is no such row, MissingExtraError without matplotlib.
        """
        from dsas.views.figure import strength_figure

        return strength_figure(self.row(row))

    def to_html(self, title: str = "What was steered") -> str:
        """Return a self-contained page: coloured text, a map of tokens and sites, and their numbers."""
        from dsas.views.explanation import explanation_html

        return explanation_html(self.rows(), title=title)

    def _repr_html_(self) -> str:
        from dsas.views.explanation import framed

        return framed(self.to_html())

    def __rich__(self) -> "Text":
        from dsas.views.terminal import coloured

        return coloured(self.rows())


def _listed(call: Outside) -> list[list[float]]:
    return [values[real].tolist() for values, real in zip(call.strengths, call.real, strict=True)]


def stacked(traces: Sequence[Trace]) -> Trace:
    """Return the rows of several traces of the same sites as one trace, padded on the right."""
    width = max(trace.real.shape[1] for trace in traces)

    def joined(values: Sequence[Tensor | None], rows: int) -> Foreign:
        padded = [pad(value, (0, width - value.shape[-1])) for value in values if value is not None]
        return torch.cat(padded, dim=rows) if padded else None

    return Trace(
        traces[0].sites,
        joined([trace.strengths for trace in traces], 1),
        joined([trace.real for trace in traces], 0),
        joined([trace.token_ids for trace in traces], 0),
        torch.cat([trace.strength for trace in traces if trace.strength is not None]),
        joined([trace.regulators for trace in traces], 1),
        joined([trace.doses for trace in traces], 1),
        joined([trace.alone for trace in traces], 1),
        {
            site: tuple(call for trace in traces for call in trace.outside.get(site, ()))
            for site in traces[0].sites
            if any(site in trace.outside for trace in traces)
        },
        traces[0].media,
        tuple(row for trace in traces for row in trace.tokens),
        tuple(row for trace in traces for row in trace.next_tokens),
        tuple(row for trace in traces for row in trace.comparisons),
        tuple(row for trace in traces for row in trace.turns),
        tuple(row for trace in traces for row in trace.counted),
    )
