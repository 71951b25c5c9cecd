"""Turns: h(t) = 1 for the tokens of some roles, parts and turns of a conversation, 0 for all others.

    dsas.Turns.of(tokenizer, only=["assistant"], leave_out=["thinking", "tool-calls"])
    steering.within(...)                                   multiplies a Steering's own regulators by it

A role's message extends from the last token that the template puts before it (after which its first word is generated)
to the next message. Thinking and tool calls extend from the last token of their opening mark through their closing
mark. Which tokens these are is read from the chat template once (`dsas.model.turn_marks`) and kept, so that a Steering
needs no tokenizer to run. `leave_out` takes precedence over `only`. During generation, a token is known to belong to a
part once the part has begun.

Source: steering only the answer is from CAA (arXiv 2312.06681). Limitations: it reads token numbers, so it does not
work when the model is given embeddings; in text without any mark no role speaks, and nothing is steered unless `only`
is empty.
"""

import json
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar, final

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from dsas.errors import DsasWarning, OptionError, StateError, closest
from dsas.methods.base import Facts, Samples
from dsas.methods.served_form import ServedGain
from dsas.model.chat import AS_IT_IS, Chat
from dsas.model.conversation import USER
from dsas.model.foreign import Tokenizer
from dsas.model.forward_pass import ForwardPass
from dsas.model.turn_marks import ROLES, Mark, turn_marks
from dsas.regulators.base import FittedRegulator, Regulator

_HEAD = 5  # fields of a state: role, open parts after the token, user's messages so far, place, parts of the token


@final
class Turns(Regulator):
    """Steers tokens of named roles and parts, in a window of turns and of places in a message.

    marks: [name, token ids, whether they end it], as `Turns.of` reads them from a tokenizer. only: roles or parts
    ("assistant", "thinking", ...) outside which nothing is steered; empty steers everywhere. leave_out: roles and parts
    that are not steered. turns, places: [start, stop), stop None for no end; turn 1 begins with the second message of
    the user, and place 0 is a message's first token. spared: token ids that are never steered.
    """

    name: ClassVar[str] = "turns"
    facts: ClassVar[Facts] = Facts(
        formula="1 for tokens of chosen roles, parts and turns of a conversation, else 0",
        paper="CAA, arXiv 2312.06681",
        left_out="needs token ids",
        flops="0",
    )
    reads_forward_pass = True
    reads_token_ids = True
    marks: Sequence[Sequence[Any]]
    only: Sequence[str]
    leave_out: Sequence[str]
    turns: Sequence[int | None]
    places: Sequence[int | None]
    spared: Sequence[int]

    def __init__(
        self,
        marks: Sequence[Sequence[Any]] = (),
        only: Sequence[str] = (),
        leave_out: Sequence[str] = (),
        turns: Sequence[int | None] = (0, None),
        places: Sequence[int | None] = (0, None),
        spared: Sequence[int] = (),
    ) -> None:
        """Keep what is steered. Raises OptionError for an unknown name and an empty window."""
        super().__init__()
        self._marks = [Mark(str(name), tuple(ids), bool(ends)) for name, ids, ends in marks]
        self._roles = [role for role in ROLES if any(mark.name == role for mark in self._marks)]
        self._parts = sorted({mark.name for mark in self._marks} - set(ROLES))
        known = [*self._roles, *self._parts]
        for name in (*only, *leave_out):
            if name not in known:
                raise OptionError(
                    f"expected roles or parts that the marks name ({', '.join(known) or 'none'}), got {name!r}; "
                    f"closest: {closest(name, known)}"
                )
        for what, window in (("turns", turns), ("places", places)):
            start, stop = window if len(window) == 2 else (None, None)
            if start is None or start < 0 or (stop is not None and stop <= start):
                raise OptionError(
                    f"{what} must be [start, stop) with 0 <= start < stop, or None to the end, got {window}"
                )
        self.keep(
            marks=[[mark.name, list(mark.ids), mark.ends] for mark in self._marks],
            only=list(only),
            leave_out=list(leave_out),
            turns=list(turns),
            places=list(places),
            spared=list(spared),
        )
        self._key = "turns", json.dumps(self.arguments())
        self._longest = max((len(mark.ids) for mark in self._marks), default=1)
        windows = (tuple(turns), tuple(places))
        self._everywhere = not (only or leave_out or spared) and windows == ((0, None), (0, None))
        self._last = {mark.ids[-1] for mark in self._marks}
        self._told = False

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, chat: Chat = AS_IT_IS, **options: Any) -> "Turns":
        """Return the regulator for the chat template of a tokenizer. options: arguments of the class but marks.

        Raises OptionError as `turn_marks` does.
        """
        return cls(turn_marks(tokenizer, chat), **options)

    @classmethod
    def fit(
        cls,
        source: Samples,
        control: Samples,
        target: Samples,
        *,
        marks: Sequence[Sequence[Any]] = (),
        only: Sequence[str] = (),
        leave_out: Sequence[str] = (),
    ) -> FittedRegulator:
        """Return the regulator; nothing is learned, so there is no accuracy."""
        return FittedRegulator(cls(marks, only, leave_out), accuracy=None)

    def forward(self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        """Return 1 where it steers, 0 elsewhere. Raises StateError where token numbers are unknown."""
        if self._everywhere:
            return torch.ones(*t.shape[:2], 1, device=t.device)
        return forward_pass.once(self._key, self._inside).to(t.device)

    def served_form(self) -> ServedGain:
        """Return itself, which depends on places alone."""
        return ServedGain(places=(self,))

    def _inside(self, forward_pass: ForwardPass) -> Float[Tensor, "batch token 1"]:
        if forward_pass.token_ids is None:
            raise StateError("turns are recognised by token numbers, and this model was given embeddings")
        ids, real = forward_pass.token_ids.cpu().numpy(), forward_pass.real.cpu().numpy()
        before = forward_pass.carried("state")
        start = np.tile(self._start(), (len(ids), 1)) if before is None else before.cpu().double().numpy()
        states = np.empty((*ids.shape, start.shape[1]))
        for row, own in enumerate(start):
            states[row] = own
            read = self._read(ids[row][real[row]], own)
            places = np.flatnonzero(real[row])
            for number, place in enumerate(places):  # padding after a token keeps its state
                states[row, place : places[number + 1] if number + 1 < len(places) else None] = read[number]
        forward_pass.carry("state", torch.from_numpy(states))
        self._tell(states, before is None)
        inside = self._chosen(states) & real & ~np.isin(ids, list(self.spared))
        return torch.from_numpy(inside).float().unsqueeze(-1)

    def _start(self) -> np.ndarray:
        """Return the state before the first token: nobody speaks, nothing is open."""
        return np.array([-1, 0, 0, -1, 0, *([-1] * (self._longest - 1))], dtype=np.float64)

    def _read(self, ids: np.ndarray, before: np.ndarray) -> np.ndarray:
        """Return the state at each token of a row."""
        tail = before[_HEAD:].astype(np.int64)
        row = np.concatenate([tail, ids])
        states = np.empty((len(ids), len(before)))
        role, opened, asked, place, _ = before[:_HEAD].astype(np.int64).tolist()
        for number, token in enumerate(ids.tolist()):
            at = number + len(tail) + 1
            place, closing = place + 1, 0
            mark = self._ending(row, at) if token in self._last else None
            if mark is not None and mark.name in self._roles:
                own = self._roles.index(mark.name)
                asked += mark.name == USER and role != own
                role, opened, place = own, 0, 0
            elif mark is not None:
                bit = 1 << self._parts.index(mark.name)
                closing, opened = (bit, opened) if mark.ends else (0, opened | bit)
            parts, opened = opened, opened & ~closing
            states[number, :_HEAD] = role, opened, asked, place, parts
            states[number, _HEAD:] = row[at - len(tail) : at]
        return states

    def _ending(self, row: np.ndarray, at: int) -> Mark | None:
        """Return the longest mark that ends before a place of a row."""
        found = [
            mark for mark in self._marks if len(mark.ids) <= at and tuple(row[at - len(mark.ids) : at]) == mark.ids
        ]
        return max(found, key=lambda mark: len(mark.ids)) if found else None

    def _chosen(self, states: np.ndarray) -> np.ndarray:
        """Return which tokens are steered, from their states."""

        def among(names: Sequence[str]) -> np.ndarray:
            roles = [self._roles.index(name) for name in names if name in self._roles]
            bits = sum(1 << self._parts.index(name) for name in names if name in self._parts)
            return np.isin(states[..., 0], roles) | ((states[..., 4].astype(np.int64) & bits) != 0)

        chosen = among(self.only) if self.only else np.ones(states.shape[:-1], dtype=bool)
        chosen &= ~among(self.leave_out)
        for counted, (start, stop) in ((np.maximum(states[..., 2] - 1, 0), self.turns), (states[..., 3], self.places)):
            if (start, stop) != (0, None):
                chosen &= (counted >= start) & (counted < (np.inf if stop is None else stop))
        return chosen

    def _tell(self, states: np.ndarray, is_first: bool) -> None:
        if is_first and self.only and not self._told and states.shape[1] > self._longest and (states[..., 0] < 0).all():
            self._told = True
            warnings.warn(
                f"no message of {', '.join(self._roles)} begins in these tokens, so nothing is steered: render "
                "prompts with the chat template",
                DsasWarning,
                stacklevel=2,
            )
