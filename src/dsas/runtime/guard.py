"""Guard: end an answer where a Steering's regulator stays high, as a stopping criterion of transformers.

    with steering.apply(model, 1.0) as applied:
        model.generate(**inputs, stopping_criteria=[dsas.Guard(applied, above=0.6, window=16)])

    mean_i  =  mean of weight * h(t) over the last `window` tokens of the answer up to token i and the Steering's sites

Once the window is full, every token of the answer that the model has read gives a mean, and the first one above
`above` ends the row. A server decides in the same way (`dsas_stop_above`, `dsas.serving.verdicts`). There the answer
ends with token i; here `generate` has already sampled token i + 1 when it asks, so that token is in the answer as well.

Limitations: it reads what was recorded, so it needs a strength other than 0 and the default of `record`. Assisted
decoding is not supported, because it reads tokens that it may take back. If a model has no end token, transformers does
not pad rows that ended before the others.
"""

from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from dsas.errors import OptionError, StateError
from dsas.runtime.applied import Applied


@final
class Guard:
    """Ends rows whose regulator, over the last tokens of the answer, is above a threshold."""

    def __init__(self, applied: Applied, above: float, window: int = 16) -> None:
        """Watch the record of this `apply`. above: >= 0, in units of the regulator. window: tokens, >= 1.

        Raises OptionError outside these ranges.
        """
        if not above >= 0 or window < 1:
            raise OptionError(f"expected above >= 0 and window >= 1, got {above} and {window}")
        self.applied, self.above, self.window = applied, above, window

    def __call__(self, input_ids: Tensor, scores: Any, **_options: Any) -> Bool[Tensor, " row"]:
        """Return which rows end here, Bool (row,). Raises StateError at strength 0 or with record=False."""
        if not bool((self.applied.strength != 0).all()):
            raise StateError("a guard reads what was applied, and strength 0 applies nothing: use another strength")
        read = input_ids.shape[1] - 1  # all but the last sampled token
        if read - self.applied.prompt_end() < self.window:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        trace = self.applied.trace(start=read - self.window)
        assert trace.strength is not None
        means = trace.strengths[..., -self.window :].nanmean(0).mean(-1) / trace.strength
        return (means > self.above).to(input_ids.device)
