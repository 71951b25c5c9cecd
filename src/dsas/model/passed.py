"""Passed: one forward pass of some rows, as their sequences keep it.

The state of regulators is kept for every column of a pass of at most `KEPT_COLUMNS` columns; a longer pass keeps that
of its last column only.
"""

from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Float, Int
from torch import Tensor

from dsas.errors import StateError
from dsas.model.site_summary import Outside

KEPT_COLUMNS = 4096


class Found(NamedTuple):
    """What a site did in one pass: `factor` times values (row, token, _), averaged over `calls` calls of its module.

    values: what was applied and, if kept, the regulator alone and the relative dose; none when nothing was recorded.
    """

    factor: float = 1.0
    values: tuple[Tensor, ...] = ()
    calls: int = 1


NOTHING = Found()


class Turn(NamedTuple):
    """A prompt and its answer: the columns where the prompt begins and ends; None while it continues."""

    start: int
    end: int | None = None


class Passed:
    """One pass of some rows: its columns, its tokens where they are known, and what was found at every site.

    rows: which rows of the record are its own, None for all. outside: by number of a site outside the decoder, what it
    did in each call of its module since the previous pass. carried: the states of each regulator that keeps any, (row,
    token, size), or (row, 1, size) for the last column alone. together: states of several regulators after a pass of
    one column, Float (state, row, size), and the place of each regulator's state; None if each is kept by itself.
    """

    __slots__ = ("carried", "found", "ids", "outside", "rows", "start", "together", "tokens", "whole")

    def __init__(self, start: int, tokens: int, ids: Int[Tensor, "row token"] | None) -> None:
        self.start, self.tokens, self.ids, self.whole = start, tokens, ids, tokens
        self.found: list[Found] = []
        self.outside: dict[int, list[Outside]] = {}
        self.rows: slice | None = None
        self.carried: dict[Hashable, Float[Tensor, "row _ size"]] = {}
        self.together: tuple[Mapping[Any, int], Float[Tensor, "state row size"]] | None = None

    @property
    def end(self) -> int:
        """The column after its last one."""
        return self.start + self.tokens

    def state(self, key: Hashable) -> Float[Tensor, "row size"] | None:
        """Return the state after its last column. Raises StateError when that was not kept."""
        kept = self.carried.get(key)
        if kept is None and self.together is not None and key in self.together[0]:
            return self.together[1][self.together[0][key]]
        if kept is None:
            return None
        if kept.shape[1] == self.whole:
            return kept[:, self.tokens - 1]
        if self.tokens < self.whole:
            raise StateError(
                f"the cache was cut inside of a pass of {self.whole} tokens, of which only the end is remembered "
                f"(more than {KEPT_COLUMNS}): run the prompt in smaller chunks, or from its beginning"
            )
        return kept[:, 0]
