"""Steps: the requests in a step of the engine, for the code that fills the buffers that the model reads."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dsas.serving.places import Ids, Placed
from dsas.serving.reports import Wanted
from dsas.serving.request_prompts import PromptOf
from dsas.serving.tokens import RequestRow
from dsas.serving.verdicts import Watched


class Served(NamedTuple):
    """A running request: the row of its tokens, its report, its regulators of places, its prompt and its verdicts."""

    row: RequestRow
    wanted: Wanted | None = None
    placed: Placed | None = None
    watched: Watched | None = None
    prompt: PromptOf | None = None


class Step(NamedTuple):
    """A step of the engine: the i-th request has the next counts[i] >= 1 tokens, after computed[i] earlier ones.

    numbers: the requests' numbers in the runner's block tables. ids: returns token ids of the i-th request.
    """

    counts: np.ndarray
    computed: np.ndarray
    numbers: np.ndarray
    ids: Callable[[int], Ids]
