"""ForwardPass: what a regulator may know about one forward pass besides the activations.

Positions count a row's real tokens absolutely: the first real token of every row is 0, whatever the padding side, and
counting goes on over the key-value cache.

A row's prompt is as long as the user says (`prompt_tokens`). Where nobody says it, the prompt is all that comes before
the first pass of a single token that goes on from a cache: so `generate()` runs, a chunked prefill too unless its last
chunk is of one token.

In a pipeline that draws pictures a token is a spatial position, all are real, and a pass knows its denoising step. Who
reads a pass from what runs: `dsas.model.token_passes` and `dsas.model.picture_passes`.
"""

from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dsas.model.strength import per_row


class History:
    """What is kept of the rows of one batch from pass to pass: where their prompts end, and what regulators remember.

    prompt_tokens: Int (row,), real tokens of each row's prompt, or None when nobody said.
    end: how many columns, padding included, the prompts take; None while they have not ended.
    memories: for each site's number, what its regulator keeps.
    """

    def __init__(self, prompt_tokens: Tensor | None = None) -> None:
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
