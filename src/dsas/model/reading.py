"""Reading: how a text becomes one vector per site."""

from typing import Literal, NamedTuple

Pooling = Literal["mean", "last"]


class Reading(NamedTuple):
    """How texts become vectors.

    pooling: "mean" over the tokens that count, or "last" real token. skip_sinks: leave attention sinks out of means.
    batch_size: rows per pass. max_tokens: longer texts are cut.
    """

    pooling: Pooling = "mean"
    skip_sinks: bool = True
    batch_size: int = 16
    max_tokens: int = 512
