"""Places: the values of regulators that depend only on places, computed before the model reads a step's tokens.

`Schedule` and `Turns` depend on where a token is in its request (in its prompt or its answer) and on token ids, never
on an activation. So they are not part of the model's graph: they are called outside it, for each request that uses
them, as for a sequence of its own (`dsas.model.forward_pass`), and write one number per token into a buffer. The prompt
is that of the request.

A request that begins with blocks of the prefix cache, or again after preemption, is read from its last known place by
its token ids, which are known whether the model reads them or not.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dsas.errors import OptionError
from dsas.methods.base import Fitted
from dsas.model.forward_pass import ForwardPass
from dsas.model.sequence import Sequences
from dsas.regulators.base import Regulator
from dsas.serving.tokens import TokenBuffers

Lists = tuple[tuple[Fitted, ...], ...]  # lists of one Steering, the first for number 1
Ids = Callable[[int, int], np.ndarray]  # returns a request's token ids from one place to another


class Placed(NamedTuple):
    """A request whose Steerings depend on places: their lists, one entry per Steering that may act, and its past.

    past: belongs to the request: how far it was read, and the state of its regulators.
    """

    lists: tuple[Lists, ...]
    past: "Past"


class Past:
    """How far a request was read by regulators that depend on places."""

    def __init__(self, prompt: int) -> None:
        """Begin a request with this many prompt tokens."""
        self._prompt = torch.tensor([prompt])
        self._history = Sequences(1, prompt_tokens=self._prompt)

    def read(self, lists: Sequence[Lists], start: int, end: int, ids: Ids) -> list[list[Tensor]]:
        """Return each list's values for the tokens from start to end, (token,) each; missing tokens are read first."""
        if self._history.length > start:  # it begins again
            self._history = Sequences(1, prompt_tokens=self._prompt)
        if self._history.length < start:
            self._pass(lists, self._history.length, start, ids)
        return self._pass(lists, start, end, ids)

    def _pass(self, lists: Sequence[Lists], start: int, end: int, ids: Ids) -> list[list[Tensor]]:
        history, count = self._history, end - start
        asked = any(one.reads_token_ids for lists_ in lists for each in lists_ for one in _regulators(each))
        numbers = torch.from_numpy(ids(start, end).astype(np.int64))[None] if asked else None
        history.begin(start, count)
        forward_pass = ForwardPass(1, count, past=start, token_ids=numbers, history=history)
        nothing = torch.zeros(1, count, 1)
        found = []
        for number, own in enumerate(lists):
            said = []
            for place, each in enumerate(own):
                value = torch.ones(count)
                for part, regulator in enumerate(_regulators(each)):
                    forward_pass.site = (number, place, part)
                    value = value * regulator(nothing, forward_pass).reshape(count)
                said.append(value)
            found.append(said)
        history.end()
        return found


class Places:
    """Fills the buffer of places for the requests of every step."""

    def __init__(self, tokens: TokenBuffers) -> None:
        self._tokens = tokens

    def begin(
        self, requests: Sequence[Placed | None], counts: np.ndarray, computed: np.ndarray, ids: Callable[[int], Ids]
    ) -> None:
        """Prepare a step: the i-th request has the next counts[i] tokens, after computed[i]. ids: those of the i-th."""
        ends = np.cumsum(counts).tolist()
        for number, (request, start, end) in enumerate(zip(requests, [0, *ends[:-1]], ends, strict=True)):
            if request is None:
                continue
            first = int(computed[number])
            said = request.past.read(request.lists, first, first + end - start, ids(number))
            for act, own in enumerate(said):
                for place, values in enumerate(own, 1):
                    self._tokens.places[act, place, start:end].copy_(values, non_blocking=True)


def reads_token_ids(lists: Lists) -> bool:
    """Whether any of these regulators reads token ids."""
    return any(one.reads_token_ids for each in lists for one in _regulators(each))


def refuse_unknown_ids(name: str, lists: Lists, reason: str) -> None:
    """Raise OptionError if these read token ids and there is a reason why the ids are unknown."""
    if reason and reads_token_ids(lists):
        raise OptionError(f"{name!r} reads token ids (roles, turns), and {reason}")


def _regulators(places: Sequence[Fitted]) -> list[Regulator]:
    return [one for one in places if isinstance(one, Regulator)]
