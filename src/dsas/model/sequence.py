"""Sequence: what is kept of the rows of one batch from one forward pass to the next, as long as their cache lives.

A row of a batch is one sequence. Its columns are the places of the cache, padding included. What is kept:

    turns    where prompts begin and end: a conversation over one cache has several
    real     which columns are tokens and which are padding
    log      the passes that ran, each with its record and the state of regulators, and how rows were moved

`Sequences` holds the rows that share one cache; `PackedSequences` those that share one row, each with a history of its
own. When a cache is cut or copied, or its rows are selected, so are its sequences (`dsas.model.caches`).

Limitations: the state of regulators is kept for every column of a pass of at most `KEPT_COLUMNS` columns; a longer pass
keeps its last column only, and a cache that is cut inside such a pass cannot be continued (StateError).
"""

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dsas.errors import StateError
from dsas.model.passed import KEPT_COLUMNS, Passed, Turn


class Sequences:
    """The rows of one batch, over all their passes.

    rows: number in the last pass. length: columns in the cache after it; before the first pass, those of unknown origin
    (`unseen`). virtual: leading columns that are not tokens, such as those of prefix tuning.
    prompt_tokens: Int (row,), real tokens of each row's prompt, or None when the user did not say. refusal: why an
    unknown state must not count as that of a beginning; empty if it may. number: number of the request.
    """

    refusal = ""
    number: int | None = None
    together: Any = None  # states of several regulators, kept together for the next pass if it continues like this one
    ending: Any = None  # the part of it with which the running pass ends

    def __init__(
        self, batch: int, *, unseen: int = 0, virtual: int = 0, prompt_tokens: Int[Tensor, " row"] | None = None
    ) -> None:
        self.rows, self.length, self.virtual = batch, unseen, virtual
        self.prompt_tokens = prompt_tokens
        self.real: Bool[Tensor, "row column"] | None = None
        self.turns: list[Turn] = []
        self.log: list[Passed | Int[Tensor, " row"]] = []
        self.current = Passed(0, 0, None)
        self._chosen: list[Int[Tensor, " row"]] = []  # since the last pass
        self._latest: dict[Hashable, tuple[int, Float[Tensor, "row size"] | None]] = {}
        self._before: dict[Hashable, tuple[int, Float[Tensor, "row size"] | None]] = {}  # of the running pass
        self._generation: tuple[object, Turn] | None = None

    @property
    def batch(self) -> int:
        """How many rows the next pass has."""
        return len(self._chosen[-1]) if self._chosen else self.rows

    @property
    def each(self) -> "tuple[Sequences, ...]":
        """These sequences, as a tuple of one; packed rows have several."""
        return (self,)

    @property
    def turn(self) -> Turn:
        """The prompt that is being read or answered."""
        return self.turns[-1] if self.turns else Turn(0)

    def begin(
        self,
        start: int,
        tokens: int,
        ids: Int[Tensor, "row token"] | None = None,
        *,
        generation: object = None,
        prompt: int | None = None,
    ) -> None:
        """Begin a pass of `tokens` columns after the first `start` ones, which these rows continue.

        generation: the call of `generate` that runs it, if any. prompt: the number of columns given to it, including
        cached ones, if known.
        """
        if self._chosen:
            self._choose()
        if self.length != start or self.current.end != start:
            self.crop(start)
        if generation is None:
            self._by_sizes(start, tokens)
        elif self._generation is not None and self._generation[0] is generation:
            turn = self._generation[1]
            self.turns = [*(one for one in self.turns if one.start < turn.start), turn]
        else:
            self._by_generation(generation, start, tokens, prompt)
        self.current, self._before = Passed(start, tokens, ids), {}

    def end(self) -> None:
        """Note that the pass has run to its end."""
        if self.ending is not None:
            self.ending.end(self)
            self.ending = None
        self.length = self.current.end

    def keep(self) -> Passed:
        """Return the running pass, which is kept from now on."""
        if not self.log or self.log[-1] is not self.current:
            self.log.append(self.current)
        return self.current

    def passes(self) -> list[tuple[Passed, Int[Tensor, " row"] | None]]:
        """Return the kept passes, without a gap up to the last, and which row each row was in them."""
        found: list[tuple[Passed, Int[Tensor, " row"] | None]] = []
        moved: Int[Tensor, " row"] | None = None
        for entry in reversed(self.log):
            if isinstance(entry, Tensor):
                moved = entry if moved is None else entry[moved]
            elif found and entry.end != found[-1][0].start:
                break
            else:
                found.append((entry, moved))
        return found[::-1]

    def state(self, key: Hashable, *, anew: bool) -> Float[Tensor, "row size"] | None:
        """Return the state under this key before the running pass, or the last one if none is running.

        anew: return None for a state from before the beginning of the prompt.
        """
        if key not in self._latest:
            self._latest[key] = self._found(key)
        running = self.length < self.current.end
        begun, value = self._before[key] if running and key in self._before else self._latest[key]
        if value is None and self.refusal:
            raise StateError(self.refusal)
        return value if begun >= (self.turn.start if anew and self.prompt_tokens is None else 0) else None

    def carry(self, key: Hashable, states: Float[Tensor, "row token size"]) -> None:
        """Keep the states after every column of the running pass."""
        if key not in self._before:
            self._before[key] = self._latest.get(key, (-1, None))
        kept = states if states.shape[1] <= KEPT_COLUMNS else states[:, -1:].clone()
        self.keep().carried[key] = kept
        self._latest[key] = self.current.start, kept.select(1, -1)

    def carry_together(self, places: Mapping[Any, int], states: Float[Tensor, "state row size"]) -> None:
        """Keep the states of several regulators after a pass of one column, each under its key."""
        self.keep().together = places, states
        for key in places:
            self._latest.pop(key, None)

    def crop(self, length: int) -> None:
        """Forget what came after the first `length` columns."""
        if self.current.end <= length and self.length <= length:
            return
        self.length = min(self.length, length)
        self._latest, self._before = {}, {}
        self.together = self.ending = None
        kept: list[Passed | Int[Tensor, " row"]] = []
        for entry in self.log:
            if not isinstance(entry, Tensor):
                if entry.start >= length:
                    continue
                entry.tokens = min(entry.tokens, length - entry.start)
            kept.append(entry)
        self.log = kept
        if self.real is not None:
            self.real = self.real[:, :length]
        self.turns = [turn for turn in self.turns if turn.start < length]
        if self.turns and self.turns[-1].end is not None and self.turns[-1].end >= length:
            self.turns[-1] = Turn(self.turns[-1].start)

    def select(self, rows: Int[Tensor, " row"]) -> None:
        """Let the next pass continue with these rows: its row i continues row rows[i]."""
        self._chosen.append(rows)

    def fork(self) -> "Sequences":
        """Return sequences with the same past that continue independently."""
        other = copy(self)
        other._chosen = list(self._chosen)
        other.turns, other._latest, other._before = list(self.turns), dict(self._latest), {}
        other.together = other.ending = None
        other.log = [entry if isinstance(entry, Tensor) else copy(entry) for entry in self.log]
        return other

    def _choose(self) -> None:
        """Move the rows as selected since the last pass."""
        self.together = None
        for rows in self._chosen:
            self.log.append(rows)
            self.rows = len(rows)
            if self.real is not None:
                self.real = self.real[rows.to(self.real.device)]
            for key, (begun, value) in self._latest.items():
                self._latest[key] = begun, None if value is None else value[rows.to(value.device)]
        self._chosen = []

    def _found(self, key: Hashable) -> tuple[int, Float[Tensor, "row size"] | None]:
        """Return the last state under a key and the column where its pass began, from the log."""
        for entry, moved in reversed(self.passes()):
            value = entry.state(key)
            if value is not None:
                return entry.start, value if moved is None else value[moved.to(value.device)]
        return -1, None

    def _by_sizes(self, start: int, tokens: int) -> None:
        """Tell prompts from generated tokens by the sizes of passes alone."""
        turn = self.turns[-1] if self.turns else None
        self._generation = None
        if turn is None:
            self.turns = [Turn(0, start if start > self.virtual and tokens == 1 else None)]
        elif turn.end is None and tokens == 1 and start > self.virtual:
            self.turns[-1] = Turn(turn.start, start)
        elif turn.end is not None and tokens > 1:
            self.turns.append(Turn(start))

    def _by_generation(self, generation: object, start: int, tokens: int, prompt: int | None) -> None:
        """Take the prompt that `generate` was given; it continues an earlier prompt without an answer."""
        if prompt is None:
            end = start + tokens
        else:
            end = (prompt if prompt > start - self.virtual else prompt + start - self.virtual) + self.virtual
        if not self.turns:
            self.turns = [Turn(0, end)]
        elif self.turns[-1].end is None:
            self.turns[-1] = Turn(self.turns[-1].start, end)
        elif end > start and tokens > 1:  # a single token is the last one generated before
            self.turns.append(Turn(start, end))
        self._generation = generation, self.turns[-1]


class PackedSequences:
    """Sequences of one row each that share a packed row: like `Sequences` for the rows of a batch."""

    virtual = 0

    def __init__(self, each: Sequence[Sequences], prompt_tokens: Int[Tensor, " row"] | None = None) -> None:
        self.each, self.prompt_tokens = tuple(each), prompt_tokens

    def state(self, key: Hashable, *, anew: bool) -> Float[Tensor, "row size"] | None:
        """Return the state of each sequence under this key, 0 for one without; None if none has a state."""
        found = [one.state(key, anew=anew) for one in self.each]
        like = next((value for value in found if value is not None), None)
        if like is None:
            return None
        return torch.cat([torch.zeros_like(like) if value is None else value for value in found])

    def carry(self, key: Hashable, states: Float[Tensor, "row token size"]) -> None:
        """Keep the states of each sequence."""
        for number, one in enumerate(self.each):
            one.carry(key, states[number : number + 1, : one.current.tokens])
