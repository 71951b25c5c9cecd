"""Reading: how a text becomes one vector per site."""

from typing import Literal, NamedTuple

from dsas.parallel.workers import Spread

Pooling = Literal["mean", "last"]


class Reading(NamedTuple):
    """How texts become vectors.

    pooling: "mean" over the tokens that count, or "last" real token. skip_sinks: leave attention sinks out of means.
    batch_size: rows per pass. max_tokens: longer texts are cut.
    incremental: read each site with the earlier sites already steered at strength 1 (AcT, arXiv 2410.23054, section
    3.2), instead of all sites from the unsteered model; `dsas.fit` only.
    spread: run the model in several processes or over a Ray cluster, on shards of the texts; the vectors are the same.
    """

    pooling: Pooling = "mean"
    skip_sinks: bool = True
    batch_size: int = 16
    max_tokens: int = 512
    incremental: bool = False
    spread: Spread = Spread()
