"""Token passes: the current forward pass of a language model, read from the arguments of its decoder's call.

It is read once per pass and only when somebody asks, and is kept per thread, so that two threads never share a pass.
"""

import inspect
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.model.foreign import Arguments, Given, Options
from dsas.model.forward_pass import ForwardPass, History
from dsas.model.hooks import Hooks
from dsas.model.sites import Site, decoder_of


class TokenPasses:
    """Keeps the calling thread's current `ForwardPass`, read from the arguments with which the decoder is called."""

    always = False

    def __init__(self, model: nn.Module, prompt_tokens: Tensor | None = None) -> None:
        """Read the decoder of `model`; `module` is where to hook `read`; prompt_tokens as in `History`."""
        self._prompt_tokens = prompt_tokens
        self.module = decoder_of(model)
        self.calls = [(self.module, self.read)]
        self._names = tuple(inspect.signature(self.module.forward).parameters)
        self._local = threading.local()

    def read(self, args: Arguments, kwargs: Options) -> ForwardPass:
        """Read the pass from the arguments of a decoder call and remember it for this thread."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        ids = given.get("input_ids")
        tokens = ids if ids is not None else given.get("inputs_embeds")
        if not isinstance(tokens, Tensor):
            raise OptionError(
                f"the model ran without input_ids or inputs_embeds (got {sorted(given)}), which steering reads"
            )
        mask = given.get("attention_mask")
        padding = mask if isinstance(mask, Tensor) and mask.ndim == 2 else _padding_from(mask)
        cache = given.get("past_key_values")
        past = int(cache.get_seq_length()) if cache is not None and hasattr(cache, "get_seq_length") else 0
        batch, count = tokens.shape[:2]
        before: ForwardPass | None = getattr(self._local, "step", None)
        if before is None or past == 0 or before.batch != batch:
            self._local.history = History(self._prompt_tokens)
        history: History = self._local.history
        history.note(past, count)
        self._local.step = ForwardPass(
            batch, count, past=past, mask=padding, token_ids=ids, device=tokens.device, history=history
        )
        return self._local.step

    def watch_runs(self, hooks: Hooks, restarted: Callable[[], None]) -> None:
        """Do nothing: a new sequence is told by its empty cache."""

    def at(self, site: Site, t: Tensor, given: Given) -> ForwardPass:
        """Return this thread's pass at a site whose activation is `t`."""
        return self.current(*t.shape[:2], device=t.device)

    def current(self, batch: int, tokens: int, device: torch.device) -> ForwardPass:
        """Return this thread's pass there, or a plain one (all tokens real, no past) if the decoder was not called."""
        step = getattr(self._local, "step", None)
        if step is None or (step.batch, step.tokens) != (batch, tokens):
            return ForwardPass(batch, tokens, device=device)
        return step.on(device)


def _padding_from(mask: Any) -> Tensor | None:
    """Recover which keys are real from a prepared attention mask: what the last query of each row may see."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return None
    last = mask[:, 0, -1]
    return last if last.dtype == torch.bool else last == 0
