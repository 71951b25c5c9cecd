"""Tokens: which row of the tables each token of a step takes, and at what strength, in buffers at fixed addresses.

A request's row is its slots and strengths, one of each per Steering that it may combine, (together,). Before the model
runs, the rows of the scheduled requests are repeated over their tokens into the buffers, which every site reads. The
buffers are made once and written in place: compiled code and CUDA graphs know them by address.
"""

from collections.abc import Sequence
from itertools import count
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

LEVELS = 3  # of summing: each is an operation of its own, and fewer levels need more ancestors per token


class RequestRow(NamedTuple):
    """The slots (together,) and strengths (together,) of one request, in the order in which they act."""

    slots: tuple[int, ...]
    strengths: tuple[float, ...]


def identity_row(together: int) -> RequestRow:
    """Return the row of a request that is not steered."""
    return RequestRow((0,) * together, (0.0,) * together)


class TokenBuffers(nn.Module):
    """The slot and strength of every token of a step: int64 and float32, both (together, tokens).

    values: float32 of the same shape, if reports are kept: the sum over sites of weight x regulator of each token.
    places: float32 (together, places, tokens), if a site depends on places: the value for each token's place, by the
    number of a row's list of places; all ones at number 0. `places` fills them. prompt_*: if a site decides by the
    prompt, the fields of `tables.ReadPrompts`; the sums are float32 (sites that decide, together, requests + 1, dim).
    `request_prompts` fills them. ancestors, positions, held_positions, sums: if a site accumulates evidence, the fields
    of `tables.SoFar`: int32 (tokens, levels, reach) with reach^levels >= tokens, float32 (tokens,) twice, float32
    (sites that accumulate, together, tokens). `carried` fills them.
    """

    slots: Tensor
    strengths: Tensor
    values: Tensor
    places: Tensor
    ancestors: Tensor
    positions: Tensor
    held_positions: Tensor
    sums: Tensor
    prompt_rows: Tensor
    prompt_counted: Tensor
    prompt_counts: Tensor
    prompt_last: Tensor
    prompt_sums: Tensor

    def __init__(self, together: int, tokens: int, *, reports: bool = False, adding: int = 0, places: int = 0) -> None:
        """Make buffers for steps of up to `tokens` tokens and requests of up to `together` Steerings; all unsteered.

        adding: number of sites that accumulate evidence. places: how many lists of places a Steering may have.
        """
        super().__init__()
        self.reports = reports
        if reports:
            self.register_buffer("values", torch.zeros(together, tokens), persistent=False)
        if places:
            self.register_buffer("places", torch.ones(together, places + 1, tokens), persistent=False)
        if adding:
            reach = next(reach for reach in count(1) if reach**LEVELS >= tokens)
            ancestors = torch.zeros(tokens, LEVELS, reach, dtype=torch.int32)
            self.register_buffer("ancestors", ancestors, persistent=False)
            self.register_buffer("positions", torch.zeros(tokens), persistent=False)
            self.register_buffer("held_positions", torch.zeros(tokens), persistent=False)
            self.register_buffer("sums", torch.zeros(adding, together, tokens), persistent=False)
        self.register_buffer("slots", torch.zeros(together, tokens, dtype=torch.int64), persistent=False)
        self.register_buffer("strengths", torch.zeros(together, tokens), persistent=False)

    def read_prompts(self, sites: int, requests: int, width: int) -> None:
        """Make room for the sums of prompts at this many sites of this width and for this many requests."""
        tokens = self.slots.shape[1]
        self.register_buffer("prompt_rows", torch.zeros(tokens, dtype=torch.int64), persistent=False)
        self.register_buffer("prompt_counted", torch.zeros(tokens, dtype=torch.bool), persistent=False)
        self.register_buffer("prompt_counts", torch.zeros(tokens), persistent=False)
        self.register_buffer("prompt_last", torch.zeros(requests + 1, dtype=torch.int64), persistent=False)
        sums = torch.zeros(sites, len(self.slots), requests + 1, width)
        self.register_buffer("prompt_sums", sums, persistent=False)

    def fill(self, rows: Sequence[RequestRow], counts: np.ndarray) -> None:
        """Write the rows of the requests of a step, the i-th for the next counts[i] tokens.

        The copies come from fresh memory that no later step writes to, so a device may read them late.
        """
        slots = np.repeat(np.array([row.slots for row in rows], dtype=np.int64).T, counts, axis=1)
        strengths = np.repeat(np.array([row.strengths for row in rows], dtype=np.float32).T, counts, axis=1)
        used = slots.shape[1]
        self.slots[:, :used].copy_(torch.from_numpy(slots), non_blocking=True)
        self.strengths[:, :used].copy_(torch.from_numpy(strengths), non_blocking=True)
        if self.reports:
            self.values.zero_()
