"""Site summary: what happened at one site while a Steering was applied."""

from typing import NamedTuple

from jaxtyping import Bool, Float
from torch import Tensor


class Outside(NamedTuple):
    """What a site outside the decoder did in one call of its module, at an encoder's tokens or a picture's patches.

    strengths: Float (row, token), what was applied, 0 on padding. real: Bool (row, token). Rows are the module's own.
    """

    strengths: Float[Tensor, "row token"]
    real: Bool[Tensor, "row token"]


class SiteSummary(NamedTuple):
    """What was recorded at a site in the last sequence or run.

    mean_strength: mean applied strength over real tokens or positions. hits: how many of them had a regulator above
    one half. Both are None when the site never fired. hits is also None if a site outside the decoder has other rows
    than those with strengths of their own.
    """

    mean_strength: float | None
    hits: int | None


NOT_RECORDED = SiteSummary(None, None)
