"""Labelled tokens: the activations of single tokens, and which of them show the behaviour."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dsas.model.activations import token_activations
from dsas.model.examples import Spans
from dsas.model.foreign import Tokenizer
from dsas.model.reading import Reading
from dsas.model.sites import Site
from dsas.model.token_batches import inputs_of, read_batches, token_spans


class LabelledTokens(NamedTuple):
    """Single tokens of many texts.

    vectors: for each site (token, dim), float32 on the CPU. shown: Bool (token,), True where a span covers the token.
    texts: Int (token,), the number of the text that each token belongs to.
    """

    vectors: dict[Site, Float[Tensor, "token dim"]]
    shown: Bool[Tensor, " token"]
    texts: Int[Tensor, " token"]


def labelled_tokens(
    module: nn.Module,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    spans: Sequence[Spans],
    sites: Sequence[Site],
    *,
    reading: Reading,
    advance: Callable[[], None],
) -> LabelledTokens:
    """Return all tokens of `texts` but special ones and, with `reading.skip_sinks`, the first of each text.

    spans: for each text, where (start, stop) in characters it shows the behaviour; a token counts as covered when it
    shares a character with a span. advance: called after every batch.
    """
    covered = token_spans(tokenizer, texts, spans)
    chosen: list[tuple[dict[str, Tensor], Tensor]] = []
    shown: list[bool] = []
    owners: list[int] = []
    for batch in read_batches(tokenizer, texts, reading):
        counted = batch.mask.clone()
        for place, row in enumerate(batch.rows):
            marks = covered[row][: int(batch.mask[place].sum())]
            counted[place, : len(marks)] &= torch.tensor([mark is not None for mark in marks])
            counted[place, 0] &= not reading.skip_sinks
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
