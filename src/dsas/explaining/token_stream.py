"""Streaming: tokens with the strength that was applied to them, while a model generates.

A token is steered when the model reads it, one step after it was drawn. So it is shown one step late, and the last
token of a text, which the model never reads, is shown without a value.

Limitations: one row at a time.
"""

from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from dsas.model.foreign import Tokenizer
from dsas.model.token_text import Pieces
from dsas.runtime.applied import Applied


class TokenStream:
    """A streamer for `generate(streamer=...)`, which receives every token of one row."""

    def __init__(
        self, tokenizer: Tokenizer, applied: Applied | None, show: Callable[[str, float | None], object]
    ) -> None:
        """Call `show(piece, value)` for each token: its text, and the mean over sites of what was applied to it.

        Where nothing is recorded, as at strength 0 or without steering, every value is None.
        """
        self._pieces, self._applied, self._show = Pieces(tokenizer), applied, show
        self._waiting: list[int] = []
        self._shown = 0

    def put(self, value: Int[Tensor, "*row token"]) -> None:
        """Take the prompt, or the token that was drawn, and show those that the model has read."""
        if self._waiting and self._applied is not None and self._applied.has_trace and self._applied.rules:
            read = self._applied.trace(start=self._shown).strengths[:, 0].nanmean(0).tolist()
            self._give(read[: len(self._waiting)])
        elif self._waiting and self._applied is None:
            self._give([None] * len(self._waiting))
        self._waiting += torch.as_tensor(value).flatten().tolist()

    def end(self) -> None:
        """Show the last token, which the model never read."""
        self._give([None] * len(self._waiting))

    def _give(self, values: list[float] | list[None]) -> None:
        for value in values:
            last = len(self._waiting) == 1 and value is None
            self._show(self._pieces.push(self._waiting.pop(0), last=last), value)
            self._shown += 1
