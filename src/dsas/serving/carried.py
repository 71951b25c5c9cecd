"""Carried: what evidence has added up to, from one step of the engine to the next, kept by block of the KV cache.

For each block the sums that follow the last token read into it are kept, at every site that adds up. A request goes on
from the block of the token before; one that begins, or begins again after it had to make room, starts at 0. So sums are
where the keys and values of the same tokens are: a request that finds blocks in the prefix cache, which are those of
equally steered requests (`requests.salt`), finds their sums too, and nothing has to be freed.

It may find a block that another request of the very same step fills. So the requests of a step are a forest, and all
their sums are one running sum along a walk through it: +s where the walk enters a token, -s where it leaves it again.

    a1 a2 ( b1 b2 -b1 -b2 ) a3 -a1 -a2 -a3          b goes on from the block that ends with a2

Limitations, refused when the server starts: what brings or spreads blocks behind the engine's back (KV connectors,
decode context parallelism), models without an attention cache, prefix caching of models with Mamba layers, whose blocks
may be found half-way.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from dsas.model.foreign import Foreign
from dsas.serving.cache_blocks import CacheGroup, follow_cache
from dsas.serving.tokens import TokenBuffers


class Walk(NamedTuple):
    """A walk over the tokens of a step, twice as many places: which token, +1 or -1; and where each is entered."""

    tokens: Int64[np.ndarray, " place"]
    signs: Float64[np.ndarray, " place"]
    entered: Int64[np.ndarray, " token"]


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
        parents = {}
        if (found := computed[going_on] % size == 0).any():  # it may be a block that another request fills now
            ends = dict(zip(filled.tolist(), at.tolist(), strict=True))
            pairs = zip(going_on[found].tolist(), before[found].tolist(), strict=True)
            parents = {row: ends[block] for row, block in pairs if block in ends}
        kept = np.array([row not in parents for row in going_on.tolist()], dtype=bool)
        self._fill(walk_of(firsts, counts, parents), positions, firsts[going_on[kept]], before[kept])
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

    def _fill(self, walk: Walk, positions: np.ndarray, firsts: np.ndarray, before: np.ndarray) -> None:
        """Write the buffers; firsts, before: of requests that go on, their first tokens and the blocks before those.

        What lies behind the step, which graphs of fixed sizes read too, is in range: token and place 0.
        """
        tokens, used = self._tokens, len(positions)
        for buffer, values in (
            (tokens.walk, walk.tokens),
            (tokens.signs, walk.signs),
            (tokens.entered, walk.entered),
            (tokens.positions, positions.astype(np.float32)),
        ):
            buffer[: len(values)].copy_(torch.from_numpy(values), non_blocking=True)
            buffer[len(values) :].zero_()
        tokens.sums[:, :, :used].zero_()
        if len(firsts):
            tokens.sums[:, :, self._index(firsts)] = self._kept[:, :, self._index(before)]

    def _index(self, places: np.ndarray) -> Tensor:
        return torch.from_numpy(places).to(self._tokens.sums.device, torch.int64, non_blocking=True)


def walk_of(firsts: np.ndarray, counts: np.ndarray, parents: Mapping[int, int]) -> Walk:
    """Return the walk through requests whose tokens lie one after another: the i-th has counts[i], from firsts[i] on.

    parents: the token of another request after which a request goes on, for those that do.
    """
    if not parents:
        own = np.arange(counts.sum(), dtype=np.int64)
        entered = own + np.repeat(firsts, counts)
        left = entered + np.repeat(counts, counts)
        tokens, signs = np.empty(2 * len(own), dtype=np.int64), np.ones(2 * len(own))
        tokens[entered] = tokens[left] = own
        signs[left] = -1.0
        return Walk(tokens, signs, entered)
    branches: dict[int, list[tuple[int, int]]] = {}
    for row, token in sorted(parents.items(), key=lambda pair: pair[1]):
        owner = int(np.searchsorted(firsts, token, side="right")) - 1
        branches.setdefault(owner, []).append((token, row))
    todo: list[int | tuple[int, int, float]] = [row for row in range(len(counts)) if row not in parents]
    runs: list[tuple[int, int, float]] = []
    while todo:  # a request by its number, or a run of tokens
        now = todo.pop()
        if isinstance(now, tuple):
            runs.append(now)
            continue
        at, end, parts = int(firsts[now]), int(firsts[now] + counts[now]), []
        for token, row in branches.get(now, []):
            parts += [(at, token + 1, 1.0), row]
            at = token + 1
        parts += [(at, end, 1.0), (int(firsts[now]), end, -1.0)]
        todo += parts[::-1]
    tokens = np.concatenate([np.arange(start, end, dtype=np.int64) for start, end, _ in runs])
    signs = np.concatenate([np.full(end - start, sign) for start, end, sign in runs])
    entered = np.empty(len(tokens) // 2, dtype=np.int64)
    entered[tokens[signs > 0]] = np.flatnonzero(signs > 0)
    return Walk(tokens, signs, entered)
