"""Labelled tokens: the activations of single tokens, and which of them show the behaviour."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsas.model.activations import token_activations
from dsas.model.sites import Site
from dsas.model.token_batches import Batch, inputs_of


class LabelledTokens(NamedTuple):
    """Single tokens of many texts.

    vectors: (token, dim) per site, float32 on the CPU. shown: Bool (token,), True where a span covers the token.
    texts: Int (token,), the number of the text that each token belongs to.
    """

    vectors: dict[Site, Float[Tensor, "token dim"]]
    shown: Bool[Tensor, " token"]
    texts: Int[Tensor, " token"]


def labelled_tokens(
    module: nn.Module,
    batches: Sequence[Batch],
    marks_of: Sequence[Sequence[bool | None]],
    sites: Sequence[Site],
    *,
    skip_sinks: bool,
    advance: Callable[[], None],
) -> LabelledTokens:
    """Return the tokens of `batches` that count, without special ones and, with `skip_sinks`, the first of each text.

    marks_of: per text, whether a span covers each token; None for special tokens. advance: called after every
    batch.
    """
    chosen: list[tuple[dict[str, Tensor], Tensor]] = []
    shown: list[bool] = []
    owners: list[int] = []
    for batch in batches:
        counted = batch.counted.clone()
        for place, row in enumerate(batch.rows):
            marks = marks_of[row][: int(batch.mask[place].sum())]
            counted[place, : len(marks)] &= torch.tensor([mark is not None for mark in marks])
            counted[place, 0] &= not skip_sinks
            keep = counted[place, : len(marks)].tolist()
            shown += [bool(mark) for mark, kept in zip(marks, keep, strict=True) if kept]
            owners += [row] * sum(keep)
        chosen.append((inputs_of(batch), counted))
    found: dict[Site, list[Tensor]] = {site: [] for site in sites}
    for vectors in token_activations(module, chosen, sites):
        for site, value in vectors.items():
            found[site].append(value)
        advance()
    every = {site: torch.cat(pieces) for site, pieces in found.items()}
    return LabelledTokens(every, torch.tensor(shown, dtype=torch.bool), torch.tensor(owners))
