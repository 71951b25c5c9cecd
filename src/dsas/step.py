"""Step: what a regulator may know about one forward pass besides the activations.

Positions count a row's real tokens absolutely: the first real token of every row is 0, whatever the padding side, and
counting goes on over the key-value cache. A `StepReader` works this out from the arguments of the decoder's own
call, once a pass and only when somebody asks, and keeps it per thread, so that two threads never share a pass.

Left out: which tokens are prompt and which generated, and the denoising step (they come with the regulators that read
them).
"""

import inspect
import threading
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.sites import decoder_of


class Step:
    """One forward pass as a regulator sees it.

    real: Bool (batch, token), False where the token is padding.
    positions: Int (batch, token), index among the row's real tokens since its beginning; padding holds -1.
    past: how many tokens of each row, padding included, earlier passes have put into the cache.
    token_ids: Int (batch, token), or None when the decoder was given embeddings.
    """

    def __init__(
        self,
        batch: int,
        tokens: int,
        *,
        past: int = 0,
        mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        """Describe a pass of `tokens` tokens in `batch` rows; `mask` (batch, past + token) is truthy on real tokens."""
        self.batch, self.tokens, self.past, self.device = batch, tokens, past, torch.device(device)
        self.token_ids = token_ids
        self._mask = mask

    @cached_property
    def _seen(self) -> Bool[Tensor, "batch seen"]:
        total = self.past + self.tokens
        if self._mask is None or self._mask.ndim != 2 or self._mask.shape[-1] < total:
            return torch.ones(self.batch, total, dtype=torch.bool, device=self.device)
        return self._mask[:, :total].to(self.device, torch.bool)

    @cached_property
    def real(self) -> Bool[Tensor, "batch token"]:
        """Which tokens of this pass are real."""
        return self._seen[:, self.past :]

    @cached_property
    def positions(self) -> Int[Tensor, "batch token"]:
        """The absolute index of every token of this pass among its row's real tokens."""
        counted = self._seen.long().cumsum(-1) - 1
        return counted.masked_fill(~self._seen, -1)[:, self.past :]


class StepReader:
    """Keeps the current `Step` of the calling thread, read from the arguments with which the decoder is called."""

    def __init__(self, model: nn.Module) -> None:
        """Read the decoder of `model`; `module` is where to hook `read`."""
        self.module = decoder_of(model)
        self._names = tuple(inspect.signature(self.module.forward).parameters)
        self._local = threading.local()

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step:
        """Read the step of a decoder call from its arguments and remember it for this thread."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        tokens = ids if ids is not None else given.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise OptionError(
                f"the model ran without input_ids or inputs_embeds (got {sorted(given)}), which steering reads"
            )
        mask = given.get("attention_mask")
        padding = mask if isinstance(mask, Tensor) and mask.ndim == 2 else _padding_from(mask)
        past = _length(given.get("past_key_values"))
        batch, count = tokens.shape[:2]
        self._local.step = Step(batch, count, past=past, mask=padding, token_ids=ids, device=tokens.device)
        return self._local.step

    def current(self, batch: int, tokens: int, device: torch.device) -> Step:
        """Return this thread's step, or a plain one (all tokens real, no past) when the decoder was not called."""
        step = getattr(self._local, "step", None)
        if step is None or (step.batch, step.tokens) != (batch, tokens):
            return Step(batch, tokens, device=device)
        return step


def _length(cache: Any) -> int:
    length = cache.get_seq_length() if cache is not None and hasattr(cache, "get_seq_length") else 0
    return int(length)


def _padding_from(mask: Any) -> Tensor | None:
    """Recover which keys are real from a prepared attention mask: what the last query of each row may see."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return None
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last == 0
