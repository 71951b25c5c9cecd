"""Packed rows: rows that hold several texts one after another, none of which attends to the others.

The decoder's arguments say where one text ends and the next begins:

    cu_seq_lens_q   cumulative lengths, as flash attention and transformers' continuous batching take them
    seq_idx         the number of each token's text, as hybrid models take it
    position_ids    positions that restart among a row's real tokens; the first of four, where pictures have three more

A text is then a row of its own for regulators, strengths and records: `Packing.take` puts the texts of an activation
into rows, padded on the right, and `put` puts them back.

Limitations: texts that are separated only by a four-dimensional attention mask are not recognised.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from dsas.errors import StateError
from dsas.model.foreign import Given, Options

_LENGTHS = ("cu_seq_lens_q", "cu_seqlens_q", "cu_seqlens")


class Packing:
    """Which tokens of packed rows (row, column) belong to each text.

    spans: row, first column and length of each text. starts: number of tokens that each text had in earlier passes.
    numbers: the number of each text, if texts come and go; None if they are those of the pass, in their order.
    """

    def __init__(
        self,
        spans: Sequence[tuple[int, int, int]],
        columns: int,
        starts: Sequence[int] | None = None,
        numbers: Sequence[int] | None = None,
    ) -> None:
        self.numbers = None if numbers is None else tuple(numbers)
        self.spans, self.starts = tuple(spans), tuple(starts if starts is not None else [0] * len(spans))
        self.longest = max(length for _, _, length in self.spans)
        lengths = torch.tensor([length for _, _, length in self.spans])
        first = torch.tensor([row * columns + column for row, column, _ in self.spans])
        self.real: Bool[Tensor, "text token"] = torch.arange(self.longest) < lengths[:, None]
        self._places: Int[Tensor, "text token"] = (first[:, None] + torch.arange(self.longest)) * self.real

    def take(self, whole: Shaped[Tensor, "row column *dim"]) -> Shaped[Tensor, "text token *dim"]:
        """Return the tokens of each text, padded on the right with any token."""
        return whole.flatten(0, 1)[self._places.to(whole.device)]

    def put(
        self, whole: Float[Tensor, "row column *dim"], part: Float[Tensor, "text token *dim"]
    ) -> Float[Tensor, "row column *dim"]:
        """Return a copy of `whole` in which the texts are those of `part`."""
        flat = whole.flatten(0, 1).clone()
        real = self.real.to(whole.device)
        flat[self._places.to(whole.device)[real]] = part[real].to(whole.dtype)
        return flat.view_as(whole)


def spans_of(
    given: Options, rows: int, columns: int, real: Bool[Tensor, "row column"] | None
) -> list[tuple[int, int, int]] | None:
    """Return row, first column and length of every text in packed rows, or None where every row is one text.

    Raises StateError when boundaries are given that cannot be read.
    """
    lengths = next((given[name] for name in _LENGTHS if isinstance(given.get(name), Tensor)), None)
    numbers, positions = given.get("seq_idx"), _positions(given.get("position_ids"), rows)
    if lengths is not None:
        return _by_lengths(lengths.tolist(), rows, columns)
    if isinstance(numbers, Tensor) and numbers.shape == (rows, columns):
        begins = numbers[:, 1:] != numbers[:, :-1]
    elif positions is not None and positions.shape == (rows, columns):
        begins, back = positions[:, 1:] == 0, positions[:, 1:] < positions[:, :-1]
        if real is not None:
            begins, back = (both & real[:, 1:] & real[:, :-1] for both in (begins, back))
        if bool((back & ~begins).any()):
            raise StateError(
                "position_ids restart at a number other than 0: it is unknown which tokens belong to which text"
            )
    else:
        return None
    if not bool(begins.any()):
        return None
    counted = torch.ones(rows, columns, dtype=torch.bool) if real is None else real.cpu()
    spans = []
    for row, starts in enumerate(begins.cpu()):
        kept = counted[row].nonzero().flatten()
        edges = [int(kept[0]), *(starts.nonzero().flatten() + 1).tolist(), int(kept[-1]) + 1] if len(kept) else []
        spans += [(row, first, last - first) for first, last in pairwise(edges) if last > first]
    return spans


def _positions(given: Given, rows: int) -> Int[Tensor, "row column"] | None:
    """Return positions per row: those of the text where others, of pictures, follow them; one row may be for all."""
    if not isinstance(given, Tensor):
        return None
    own = given[0] if given.ndim == 3 and len(given) == 4 else given
    if own.ndim != 2:
        return None
    return own.expand(rows, -1) if len(own) == 1 else own


def _by_lengths(edges: list[int], rows: int, columns: int) -> list[tuple[int, int, int]] | None:
    if rows != 1 or edges[0] != 0 or edges[-1] > columns:
        raise StateError(
            f"cumulative lengths {edges[:4]}... describe one packed row, but the model was given {rows} rows of "
            f"{columns} tokens: it is unknown which tokens belong to which text"
        )
    spans = [(0, first, last - first) for first, last in pairwise(edges) if last > first]
    return spans if len(spans) > 1 else None
