"""Steps: what a step of the engine is about, for those who fill the buffers that the model reads."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dsas.serving.places import Ids, Placed
from dsas.serving.reports import Wanted
from dsas.serving.request_prompts import PromptOf
from dsas.serving.tokens import RequestRow
from dsas.serving.verdicts import Watched


class Served(NamedTuple):
    """A request that runs: the row of its tokens, whose report they belong to, who looks at places and who judges."""

    row: RequestRow
    wanted: Wanted | None = None
    placed: Placed | None = None
    watched: Watched | None = None
    prompt: PromptOf | None = None


class Step(NamedTuple):
    """A step of the engine: the i-th request has the next counts[i] >= 1 tokens, after computed[i] read before.

    numbers: by which the runner's block tables know the requests. ids: gives those of the i-th request's tokens.
    """

    counts: np.ndarray
    computed: np.ndarray
    numbers: np.ndarray
    ids: Callable[[int], Ids]
