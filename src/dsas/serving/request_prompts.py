"""Request prompts: which tokens of a step belong to prompts that decide about their requests, and where the sums are.

A regulator such as CAST decides by the mean of the prompt's activations so far, which is a vector per site. Its sums
are stored by request, in rows that the graph reads and writes (`tables.ReadPrompts`); this module says which row each
token belongs to. A request takes a row when it begins. It uses no blocks of the prefix cache, whose tokens it would not
see (`admission`), so a preempted request starts again from nothing.

Limitations: when rows run out, that of the request that has not run for the longest time is reused; there are twice as
many rows as requests that run at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from dsas.errors import StateError
from dsas.serving.tokens import TokenBuffers


class PromptOf(NamedTuple):
    """A request that is decided by its prompt: its id, and the number of its prompt's tokens."""

    request: str
    tokens: int


class Prompts:
    """The rows of requests, and the buffers of a step."""

    def __init__(self, tokens: TokenBuffers) -> None:
        """Fill these buffers, which have room for sums."""
        self._tokens = tokens
        self._rows: dict[str, int] = {}  # the one that ran last comes last
        self._free = list(range(tokens.prompt_sums.shape[2] - 1, 0, -1))

    def begin(self, requests: Sequence[PromptOf | None], counts: np.ndarray, computed: np.ndarray) -> None:
        """Prepare a step: the i-th request has the next counts[i] tokens, after computed[i] that were read before."""
        buffers, ends = self._tokens, np.cumsum(counts)
        rows, last = np.zeros(len(requests), dtype=np.int64), np.zeros(buffers.prompt_sums.shape[2], dtype=np.int64)
        for number, request in enumerate(requests):
            if request is not None:
                rows[number] = self._row(request.request, begins=bool(computed[number] == 0))
                last[rows[number]] = ends[number]
        fresh = rows[(rows > 0) & (computed == 0)]
        lengths = np.array([0 if one is None else one.tokens for one in requests])
        own = np.repeat(np.arange(len(requests)), counts)
        positions = np.arange(len(own)) - (ends - counts)[own] + computed[own]
        counted = (positions > 0) & (positions < lengths[own])
        total = np.clip(np.minimum(positions, lengths[own] - 1), 0, None).astype(np.float32)
        for buffer, values in (
            (buffers.prompt_rows, rows[own]),
            (buffers.prompt_counted, counted),
            (buffers.prompt_counts, total),
        ):
            buffer[: len(own)].copy_(torch.from_numpy(values), non_blocking=True)
            buffer[len(own) :].zero_()  # graphs of fixed sizes read this part, too
        buffers.prompt_last.copy_(torch.from_numpy(last), non_blocking=True)
        if len(fresh):
            buffers.prompt_sums[:, :, torch.from_numpy(fresh).to(buffers.prompt_sums.device)] = 0.0

    def end(self) -> None:
        """Let passes without preparation, as engines run to stay in step, add to no sums."""
        self._tokens.prompt_last.zero_()

    def _row(self, request: str, *, begins: bool) -> int:
        row = self._rows.pop(request, None)
        if row is None:
            if not begins:
                raise StateError(f"nothing is known of the prompt of request {request}, which began elsewhere")
            if not self._free:
                self._free.append(self._rows.pop(next(iter(self._rows))))
            row = self._free.pop()
        self._rows[request] = row
        return row
