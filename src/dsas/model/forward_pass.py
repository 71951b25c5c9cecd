"""ForwardPass: what a regulator may know about one forward pass besides the activations.

Positions count a row's real tokens absolutely: the first real token of every row is 0, whatever the padding side, and
counting goes on over the key-value cache. A `StepReader` works this out from the arguments of the decoder's own
call, once a pass and only when somebody asks, and keeps it per thread, so that two threads never share a pass.

A row's prompt is as long as the user says (`prompt_tokens`). Where nobody says it, the prompt is all that comes before
the first pass of a single token that goes on from a cache: so `generate()` runs, a chunked prefill too unless its last
chunk is of one token.

In a pipeline that draws pictures a token is a spatial position, all are real, and a pass knows its denoising step; who
reads it there is `dsas.model.image_pipeline`.
"""

import inspect
import threading
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dsas.errors import OptionError
from dsas.model.sites import Site, decoder_of
from dsas.model.strength import per_row


class History:
    """What is kept of the rows of one batch from pass to pass: where their prompts end, and what regulators remember.

    prompt_tokens: Int (row,), real tokens of each row's prompt, or None when nobody said.
    end: how many columns, padding included, the prompts take; None while they have not ended.
    memories: for each site's number, what its regulator keeps.
    """

    def __init__(self, prompt_tokens: Tensor | None = None) -> None:
        """Begin with nothing run."""
        self.prompt_tokens = prompt_tokens
        self.end: int | None = None
        self.memories: dict[int, dict[Any, Any]] = {}

    def note(self, past: int, tokens: int) -> None:
        """Take note of a pass of `tokens` columns that follow on `past` others."""
        if self.end is None and past > 0 and tokens == 1:
            self.end = past


class Denoising(NamedTuple):
    """Where in the schedule a pass is.

    number: of the denoising step, 0 to total - 1, counted over the whole schedule, wherever a run begins in it. total:
    steps of the schedule. place: the scheduler's own index, which differs between the passes of one step.
    """

    number: int
    total: int
    place: int


class ForwardPass:
    """One forward pass as a regulator sees it.

    real: Bool (batch, token), False where the token is padding.
    positions: Int (batch, token), index among the row's real tokens since its beginning; padding holds -1.
    past: how many tokens of each row, padding included, earlier passes have put into the cache.
    token_ids: Int (batch, token), or None when the decoder was given embeddings.
    site: number of the site whose regulator is asked, set by whoever asks.
    denoising: where in the schedule the pass is, None outside of a denoiser.
    rows, copies: which rows of the model's batch these are, None for all of them; and how often the rows of the user's
    batch are repeated in them, one after another. grid: height and width of the positions, None where there are none.
    """

    denoising: Denoising | None = None
    rows: slice | None = None
    copies: int = 1
    grid: tuple[int, int] | None = None

    def __init__(
        self,
        batch: int,
        tokens: int,
        *,
        past: int = 0,
        mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        device: torch.device | str = "cpu",
        history: History | None = None,
    ) -> None:
        """Describe a pass of `tokens` tokens in `batch` rows; `mask` (batch, past + token) is truthy on real tokens."""
        self.batch, self.tokens, self.past, self.device = batch, tokens, past, torch.device(device)
        self.token_ids = token_ids
        self.site = 0
        self._mask = mask
        self._history = history or History()
        self._elsewhere: dict[torch.device, ForwardPass] = {}

    def on(self, device: torch.device) -> "ForwardPass":
        """Return this step as it is on another device, where a model spread over several has the site."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            self._elsewhere[device] = ForwardPass(
                self.batch, self.tokens, past=self.past, mask=self._mask, token_ids=self.token_ids, device=device,
                history=self._history,
            )  # fmt: skip
        return self._elsewhere[device]

    def take(self, whole: Tensor) -> Tensor:
        """Return the rows of the model's batch that this step is of."""
        return whole if self.rows is None else whole[self.rows]

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return `whole` with the rows of this step replaced, as a copy where there are others."""
        if len(part) == len(whole):
            return part
        copied = whole.clone()
        copied[self.rows] = part
        return copied

    @property
    def memory(self) -> dict[Any, Any]:
        """What the regulator of the current site keeps from pass to pass of these rows; empty at their beginning."""
        return self._history.memories.setdefault(self.site, {})

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

    @cached_property
    def prompt_lengths(self) -> Int[Tensor, " batch"]:
        """How many real tokens each row's prompt has; while it has not ended, how many came so far."""
        given = self._history.prompt_tokens
        if given is not None:
            return per_row(given.to(self.device), self.batch, "prompt lengths")
        return self._seen[:, : self._history.end].sum(-1)

    @cached_property
    def prompt(self) -> Bool[Tensor, "batch token"]:
        """Which tokens of this pass are real and belong to the prompt."""
        return self.real & (self.positions < self.prompt_lengths.unsqueeze(-1))


class StepReader:
    """Keeps the calling thread's current `ForwardPass`, read from the arguments with which the decoder is called."""

    def __init__(self, model: nn.Module, prompt_tokens: Tensor | None = None) -> None:
        """Read the decoder of `model`; `module` is where to hook `read`; prompt_tokens as in `History`."""
        self._prompt_tokens = prompt_tokens
        self.module = decoder_of(model)
        self.calls = [(self.module, self.read)]
        self._names = tuple(inspect.signature(self.module.forward).parameters)
        self._local = threading.local()

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ForwardPass:
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
        before: ForwardPass | None = getattr(self._local, "step", None)
        if before is None or past == 0 or before.batch != batch:
            self._local.history = History(self._prompt_tokens)
        history: History = self._local.history
        history.note(past, count)
        self._local.step = ForwardPass(
            batch, count, past=past, mask=padding, token_ids=ids, device=tokens.device, history=history
        )
        return self._local.step

    def at(self, _site: Site, t: Tensor, _given: Any) -> ForwardPass:
        """Return this thread's step at a site whose activation is `t`."""
        return self.current(*t.shape[:2], device=t.device)

    def current(self, batch: int, tokens: int, device: torch.device) -> ForwardPass:
        """Return this thread's step there, or a plain one (all tokens real, no past) if the decoder was not called."""
        step = getattr(self._local, "step", None)
        if step is None or (step.batch, step.tokens) != (batch, tokens):
            return ForwardPass(batch, tokens, device=device)
        return step.on(device)


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
