"""Site summary: what happened at one site while a Steering was applied."""

from typing import NamedTuple


class SiteSummary(NamedTuple):
    """What was recorded at a site in the last sequence or run.

    mean_strength: mean applied strength over real tokens or positions. hits: how many of them had a regulator above
    one half. Both are None when the site never fired, so that nothing is known.
    """

    mean_strength: float | None
    hits: int | None


NOT_RECORDED = SiteSummary(None, None)
