"""Carried: what evidence has added up to, from one step of the engine to the next, kept by block of the KV cache.

For each block the sums that follow the last token read into it are kept, at every site that adds up. A request goes on
from the block of the token before; one that begins, or begins again after it had to make room, starts at 0. So sums are
where the keys and values of the same tokens are: a request that finds blocks in the prefix cache, which are those of
equally steered requests (`requests.salt`), finds their sums too, and nothing has to be freed.

It may find a block that another request of the very same step fills. So the requests of a step are a forest: before the
first token of one may come a token of another. Every token is told its ancestors 1 to reach - 1 tokens before it, then
those reach, 2 reach, ... before, and so on by powers of reach: adding up over each of these in turn adds up over all.

    a1 a2 a3 | b1 b2          b continues from the block that ends with a2: before b2 come b1, a2, a1

Limitations, refused when the server starts: what brings or spreads blocks behind the engine's back (KV connectors,
decode context parallelism), models without an attention cache, prefix caching of models with Mamba layers, whose blocks
may be found half-way.
"""

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from dsas.model.foreign import Foreign
from dsas.serving.cache_blocks import CacheGroup, follow_cache
from dsas.serving.tokens import TokenBuffers


class Carried:
    """The sums of all sites that add up, (site, together, block)."""

    def __init__(self, tokens: TokenBuffers, runner: Foreign, *, prefix_caching: bool) -> None:
        """Fill these buffers, which have a place for sums, for a model runner of vLLM. Its KV cache is made later.

        Raises OptionError then, as `cache_group`.
        """
        self._tokens = tokens
        self._blocks = follow_cache(runner, self._allot, prefix_caching=prefix_caching)
        self._step: tuple[Tensor, Tensor] | None = None

    def begin(self, counts: np.ndarray, computed: np.ndarray, numbers: np.ndarray) -> None:
        """Prepare a step: the i-th request has the next counts[i] >= 1 tokens, after computed[i] that were read before.

        numbers: by which the runner's block tables know the requests.
        """
        group, size, blocks = self._cache.number, self._cache.size, self._blocks
        rows, firsts = np.repeat(np.arange(len(counts)), counts), np.cumsum(counts) - counts
        positions = np.arange(len(rows)) - firsts[rows] + computed[rows]
        last = (positions + 1) % size == 0
        last[firsts + counts - 1] = True
        at = np.flatnonzero(last)
        filled = blocks(group, numbers[rows[at]], positions[at] // size)
        going_on = np.flatnonzero(computed > 0)
        before = blocks(group, numbers[going_on], (computed[going_on] - 1) // size)
        places = np.zeros(len(going_on), dtype=np.int64)
        if (found := computed[going_on] % size == 0).any():  # it may be a block that another request fills now
            ends = dict(zip(filled.tolist(), (at + 1).tolist(), strict=True))
            places[found] = [ends.get(block, 0) for block in before[found].tolist()]
        previous, own = np.arange(len(rows)), places == 0
        previous[firsts], previous[firsts[going_on]] = 0, places
        self._fill(previous, positions, firsts[going_on[own]], before[own])
        self._step = self._index(filled), self._index(at)

    def end(self) -> None:
        """Keep the sums of the step that ran; without one there is nothing to keep."""
        if self._step is not None:
            blocks, at = self._step
            self._kept[:, :, blocks] = self._tokens.sums[:, :, at]
            self._step = None

    def _allot(self, cache: CacheGroup) -> None:
        """Make room for the sums of every block; those that were there are gone, as the blocks are."""
        sums = self._tokens.sums
        self._cache, self._kept = cache, sums.new_zeros(*sums.shape[:2], cache.blocks)

    def _fill(self, previous: np.ndarray, positions: np.ndarray, firsts: np.ndarray, before: np.ndarray) -> None:
        """Write the buffers; firsts, before: of requests that go on, their first tokens and the blocks before those.

        previous: the place of the token before each, as `ancestors_of` has it. What lies behind the step, which graphs
        of fixed sizes read too, has place 0, which is in range.
        """
        tokens, used = self._tokens, len(positions)
        ancestors = ancestors_of(previous, *tokens.ancestors.shape[1:])
        for buffer, values in ((tokens.ancestors, ancestors), (tokens.positions, positions.astype(np.float32))):
            buffer[:used].copy_(torch.from_numpy(values), non_blocking=True)
            buffer[used:].zero_()
        tokens.sums[:, :, :used].zero_()
        if len(firsts):
            tokens.sums[:, :, self._index(firsts)] = self._kept[:, :, self._index(before)]

    def _index(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places).to(self._tokens.sums.device, torch.int64, non_blocking=True)


def ancestors_of(
    before: Int64[np.ndarray, " token"], levels: int, reach: int
) -> Int32[np.ndarray, "token level reach"]:
    """Return, at [i, k, d], the place of the token d * reach^k before token i, 0 where none of the step is.

    before: the place of the token before each, 0 for none. Token i is at place i + 1.
    """
    found = np.zeros((len(before), levels, reach), dtype=np.int32)
    jump = np.concatenate([[0], before])
    for level in range(levels):
        at = np.arange(len(jump))
        for times in range(reach):
            if not at.any():
                break
            found[:, level, times] = at[1:]
            at = jump[at]
        jump = at
    return found
