"""Carried: the sums of evidence between steps of the engine, stored by block of the KV cache.

For each block, the sums after the last token read into it are stored, for every site that accumulates evidence. A
request continues from the block of its previous token; a new request, or one restarted after preemption, starts at 0.
So sums are stored where the keys and values of the same tokens are: a request that finds blocks in the prefix cache,
which come from equally steered requests (`requests.salt`), finds their sums too, and nothing has to be freed.

It may find a block that another request fills in the same step. So the requests of a step are a forest: the token
before the first one of a request may belong to another request. Every token gets the places of its ancestors 1 to reach
- 1 tokens before it, then those reach, 2 reach, ... before, and so on by powers of reach: summing over each level in
  turn sums over all ancestors.

    a1 a2 a3 | b1 b2          b continues from the block that ends with a2: b2 is preceded by b1, a2, a1

Evidence that is held after the prompt is that of the prompt's tokens: the position that counts stops there.

Limitations (refused when the server starts): features that move blocks outside the engine (KV connectors, decode
context parallelism), models without an attention cache, and prefix caching of models with Mamba layers, whose blocks
may be reused partly filled.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Int32, Int64
from torch import Tensor

from dsas.model.foreign import Foreign
from dsas.serving.cache_blocks import CacheGroup, follow_cache
from dsas.serving.request_prompts import PromptOf
from dsas.serving.tokens import TokenBuffers


class Carried:
    """The sums of all sites that accumulate evidence, (site, together, block)."""

    def __init__(self, tokens: TokenBuffers, runner: Foreign, *, prefix_caching: bool) -> None:
        """Fill these buffers, which have room for sums, for a model runner of vLLM. Its KV cache is made later.

        Raises OptionError at that time, as `cache_group` does.
        """
        self._tokens = tokens
        self._blocks = follow_cache(runner, self._allot, prefix_caching=prefix_caching)
        self._step: tuple[Tensor, Tensor] | None = None

    def begin(
        self, prompts: Sequence[PromptOf | None], counts: np.ndarray, computed: np.ndarray, numbers: np.ndarray
    ) -> None:
        """Prepare a step: the i-th request has the next counts[i] >= 1 tokens, after computed[i] earlier ones.

        prompts: where the prompt decides about a request, its length; else None. numbers: the requests' numbers in the
        runner's block tables.
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
        if (found := computed[going_on] % size == 0).any():  # it may be a block that another request fills in this step
            ends = dict(zip(filled.tolist(), (at + 1).tolist(), strict=True))
            places[found] = [ends.get(block, 0) for block in before[found].tolist()]
        previous, own = np.arange(len(rows)), places == 0
        previous[firsts], previous[firsts[going_on]] = 0, places
        lasts = np.array([np.inf if one is None else one.tokens - 1 for one in prompts])
        held = np.minimum(positions, lasts[rows])
        self._fill(previous, (positions, held), firsts[going_on[own]], before[own])
        self._step = self._index(filled), self._index(at)

    def end(self) -> None:
        """Store the sums of the last step, if there was one."""
        if self._step is not None:
            blocks, at = self._step
            self._kept[:, :, blocks] = self._tokens.sums[:, :, at]
            self._step = None

    def _allot(self, cache: CacheGroup) -> None:
        """Make room for the sums of every block; old sums are lost together with their blocks."""
        sums = self._tokens.sums
        self._cache, self._kept = cache, sums.new_zeros(*sums.shape[:2], cache.blocks)

    def _fill(
        self, previous: np.ndarray, positions: tuple[np.ndarray, np.ndarray], firsts: np.ndarray, before: np.ndarray
    ) -> None:
        """Write the buffers. firsts, before: the first tokens of continuing requests and the blocks before them.

        positions: in the sequence, and held after the prompt. previous: the place of the token before each, as in
        `ancestors_of`. Entries after the step, which graphs of fixed sizes also read, have place 0, which is valid.
        """
        tokens, used = self._tokens, len(previous)
        ancestors = ancestors_of(previous, *tokens.ancestors.shape[1:])
        places, held = (one.astype(np.float32) for one in positions)
        written = ((tokens.ancestors, ancestors), (tokens.positions, places), (tokens.held_positions, held))
        for buffer, values in written:
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
    """Return, at [i, k, d], the place of the token d * reach^k before token i, or 0 if it is not in the step.

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
