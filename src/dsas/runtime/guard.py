"""Guard: end an answer where a Steering's regulator stays high, as a stopping criterion of transformers.

    with steering.apply(model, 1.0) as applied:
        model.generate(**inputs, stopping_criteria=[dsas.Guard(applied, above=0.6, window=16)])

    mean_i  =  mean of weight * h(t) over the last `window` tokens of the answer up to token i and the Steering's sites

Once the window is full, every token of the answer that the model has read gives a mean, and the first one above
`above` ends the row. A server decides in the same way (`dsas_stop_above`, `dsas.serving.verdicts`). There the answer
ends with token i; here `generate` has already sampled token i + 1 when it asks, so that token is in the answer as well.

Limitations: it reads what was recorded, so it needs a strength other than 0 and the default of `record`. Assisted
decoding is not supported, because it reads tokens that it may take back; beam search is refused, because its rows are
not those that the model has read. If a model has no end token, transformers does not pad rows that ended before others.
"""

from typing import Any, final

import torch
from jaxtyping import Bool
from torch import Tensor

from dsas.errors import OptionError, StateError
from dsas.model.token_trace import Trace
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
        """Return which rows end here, Bool (row,).

        Raises StateError at strength 0, with record=False, and for other rows than the model has read.
        """
        if not bool((self.applied.strength != 0).all()):
            raise StateError("a guard reads what was applied, and strength 0 applies nothing: use another strength")
        end, read = self.applied.prompt_end(), self.applied.read_end()  # not from ids: of embeddings there are none
        if read - end < self.window:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        trace = self._last(read)
        assert trace.strength is not None
        means = trace.strengths[..., -self.window :].nanmean(0).mean(-1) / trace.strength
        if len(means) != len(input_ids):
            raise StateError(
                f"a guard was asked about {len(input_ids)} rows, but the model has read {len(means)}: beam search and "
                "guidance with both branches steered run other rows; use num_beams=1 and the conditional branch"
            )
        return (means > self.above).to(input_ids.device)

    def _last(self, read: int) -> Trace:
        """Return the record of at least the last `window` tokens. Raises StateError where several were read at once."""
        try:
            trace = self.applied.trace(start=read - self.window)
        except StateError:  # without a cache, every pass begins at the first token
            trace = self.applied.trace()
        if trace.strengths.shape[-1] < self.window:
            raise StateError("a guard judges tokens that are read one by one: assisted decoding guesses several")
        return trace
