"""ForwardPass: what a regulator may know about one forward pass besides the activations.

Positions count a row's real tokens absolutely: the first real token of every row is 0, whatever the padding side, and
counting continues over the key-value cache.

A row's prompt is as long as the user says (`prompt_tokens`), or else what `generate()` was given. Without either, the
prompt is everything before the first pass of a single token that continues from a cache, and a later pass of several
tokens begins the prompt of a new turn (`dsas.model.sequence`).

In a packed row, which holds several texts, every text counts as a row of its own here. In a pipeline that draws
pictures a token is a spatial position, all are real, and a pass knows its denoising step. Passes are read from the
running model by `dsas.model.token_passes` and `dsas.model.picture_passes`.
"""

from collections.abc import Callable, Hashable
from copy import copy
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Tensor

from dsas.model.packed_rows import Packing
from dsas.model.sequence import PackedSequences, Sequences
from dsas.model.strength import per_request, per_row

Made = TypeVar("Made")
UNKNOWN = 0  # value of copies where the user's row of a model's row is unknown


class Denoising(NamedTuple):
    """Where in the schedule a pass is.

    number: the denoising step, 0 to total - 1, counted over the whole schedule, even if a run begins later in it.
    total: steps of the schedule. place: the scheduler's own index, which differs between the passes of one step.
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
    site: the site whose regulator is called, set by the caller.
    denoising: where in the schedule the pass is, None outside of a denoiser.
    rows, copies: which rows of the model's batch these are, None for all of them; and how often the rows of the user's
    batch are repeated in them, one after another, or `UNKNOWN`. span: which tokens of each row these are, None for all
    of them. grid: height and width of the positions, None where there are none.
    packing: which tokens of packed rows each text is, None where a row is one text. branch: of guidance, of the prompts
    that a text encoder of a pipeline reads, "" elsewhere.
    """

    denoising: Denoising | None = None
    rows: slice | None = None
    copies: int = 1
    span: slice | None = None
    grid: tuple[int, int] | None = None
    packing: Packing | None = None
    branch: str = ""
    decoding: Any = None  # what the sites of a generated token share

    def __init__(
        self,
        batch: int,
        tokens: int,
        *,
        past: int = 0,
        mask: Tensor | None = None,
        token_ids: Tensor | None = None,
        device: torch.device | str = "cpu",
        history: Sequences | PackedSequences | None = None,
    ) -> None:
        """Describe a pass of `tokens` tokens in `batch` rows; `mask` (batch, past + token) is truthy on real tokens."""
        self.batch, self.tokens, self.past, self.device = batch, tokens, past, torch.device(device)
        self.token_ids = token_ids
        self.site: Hashable = 0
        if history is None:
            history = Sequences(batch, unseen=past)
            history.begin(past, tokens)
        self.history = history
        self._mask = mask
        self._added: list[Tensor] = []  # at most one: shared by all devices and parts of the pass

    def on(self, device: torch.device) -> "ForwardPass":
        """Return this pass on another device, where a model that is spread over several has the site."""
        if device == self.device:
            return self
        if device not in self._elsewhere:
            there = self._elsewhere[device] = ForwardPass(
                self.batch, self.tokens, past=self.past, mask=self._mask, token_ids=self.token_ids, device=device,
                history=self.history,
            )  # fmt: skip
            there.packing, there._added = self.packing, self._added
        return self._elsewhere[device]

    def ask(self, site: int) -> None:
        """Note that the regulator of a site is called next; runs of the same module in one pass are kept separate."""
        times = self._asked[site] = self._asked.get(site, -1) + 1
        self.site = (site, times)

    def part(self, number: int) -> "ForwardPass":
        """Return this pass for one of several regulators at the same site: each carries its own state."""
        other = copy(self)
        other.site = (self.site, number)
        return other

    def take(self, whole: Tensor) -> Tensor:
        """Return the rows and tokens of the model's batch that belong to this pass, or the texts of packed rows."""
        if self.packing is not None:
            return self.packing.take(whole)
        part = whole if self.rows is None else whole[self.rows]
        return part if self.span is None else part[:, self.span]

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """Return `whole` with the rows of this pass replaced, as a copy where there are others."""
        if self.packing is not None:
            return self.packing.put(whole, part)
        if self.rows is None or part.shape[:2] == whole.shape[:2]:
            return part
        copied = whole.clone()
        copied[self.rows, slice(None) if self.span is None else self.span] = part
        return copied

    def spread(self, values: Num[Tensor, " row"], what: str = "strengths") -> Num[Tensor, " batch"]:
        """Return the user's values, one or one per row, for the rows of this pass; see `per_row`.

        With requests that come and go, each has the value of its number. Raises StrengthError, OptionError.
        """
        if self.packing is not None and self.packing.numbers is not None:
            return per_request(values, self.packing.numbers, what)
        return per_row(values, self.batch, what, copies=self.copies)

    def once(self, key: Hashable, make: "Callable[[ForwardPass], Made]") -> Made:
        """Return `make` of this pass, computed once for all sites, which share the state that it carries."""
        if key not in self._made:
            shared = copy(self)
            shared.site = ("every site", key)
            self._made[key] = make(shared)
        return self._made[key]

    def add(self, change: Float[Tensor, "batch token dim"]) -> None:
        """Record what a site has added to its tokens; it counts only for sites with the same tokens."""
        if self._added and self._added[0].shape == change.shape:
            change = self._added[0].to(change.device) + change
        self._added[:] = [change]

    def without_additions(self, t: Float[Tensor, "batch token dim"]) -> Float[Tensor, "batch token dim"]:
        """Return tokens without what earlier sites have added to them in this pass, float32 or better."""
        if not self._added or self._added[0].shape != t.shape:
            return t
        return t - self._added[0].to(t.device)

    @property
    def generated(self) -> bool:
        """Whether it is known, without looking at the tokens, that none of them belongs to a prompt."""
        starts = self.packing.starts if self.packing is not None else (self.past,)
        turns = [one.turn for one in self.history.each]
        return self.history.prompt_tokens is None and all(
            turn.end is not None and start >= turn.end for turn, start in zip(turns, starts, strict=True)
        )

    def carried(self, name: str, *, anew: bool = False) -> Float[Tensor, "batch size"] | None:
        """Return the state of this site's regulator after the last token before this pass.

        None at the beginning of the rows. anew: None at the beginning of each turn's prompt, too.
        """
        state = self.history.state((self.site, name), anew=anew)
        return state if state is None or state.device == self.device else state.to(self.device)

    def carry(self, name: str, states: Float[Tensor, "batch token size"]) -> None:
        """Keep the state after each token of this pass, so that a cache can be cut anywhere and continued."""
        self.history.carry((self.site, name), states.detach() if states.requires_grad else states)

    @cached_property
    def _made(self) -> dict[Hashable, Any]:
        return {}

    @cached_property
    def _asked(self) -> dict[int, int]:
        return {}

    @cached_property
    def _elsewhere(self) -> "dict[torch.device, ForwardPass]":
        return {}

    @cached_property
    def _seen(self) -> Bool[Tensor, "batch seen"]:
        total = self.past + self.tokens
        if self._mask is None or self._mask.ndim != 2 or self._mask.shape[-1] < total:
            seen = torch.ones(self.batch, total, dtype=torch.bool, device=self.device)
        else:
            seen = self._mask[:, :total].to(self.device, torch.bool)
        virtual = self.history.virtual
        return seen if virtual == 0 else seen & (torch.arange(total, device=self.device) >= virtual)

    @cached_property
    def _starts(self) -> Int[Tensor, "batch 1"] | int:
        """The number of earlier tokens of each packed text, with which the mask begins."""
        return 0 if self.packing is None else torch.tensor(self.packing.starts, device=self.device).unsqueeze(-1)

    @cached_property
    def real(self) -> Bool[Tensor, "batch token"]:
        """Which tokens of this pass are real."""
        return self._seen[:, self.past :]

    @cached_property
    def positions(self) -> Int[Tensor, "batch token"]:
        """The absolute index of every token of this pass among its row's real tokens."""
        counted = self._seen.long().cumsum(-1) - 1 + self._starts
        return counted.masked_fill(~self._seen, -1)[:, self.past :]

    @cached_property
    def counted(self) -> Bool[Tensor, "batch token"]:
        """Which tokens of this pass are real and not the first of their row, an attention sink."""
        return self.real & (self.positions > 0)

    @cached_property
    def prompt_lengths(self) -> Int[Tensor, " batch"]:
        """The number of real tokens of each row up to the end of its prompt, or so far while the prompt continues.

        In a conversation over one cache, the prompt is that of the last turn.
        """
        given = self.history.prompt_tokens
        if given is not None:
            return self.spread(given.to(self.device), "prompt lengths")
        if self.packing is None:
            return self._seen[:, : self.history.each[0].turn.end].sum(-1)
        ends = [one.turn.end if one.turn.end is not None else one.current.end for one in self.history.each]
        return torch.tensor(ends, device=self.device)

    @cached_property
    def prompt(self) -> Bool[Tensor, "batch token"]:
        """Which tokens of this pass are real and belong to the prompt."""
        return self.real & (self.positions < self.prompt_lengths.unsqueeze(-1))
