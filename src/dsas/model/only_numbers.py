"""Only numbers: scores of the next token that are not finite end a generation with an error, not with some token.

Activations beyond the range of the model's number format become infinite, and the scores nan: the strength was too
large.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dsas.errors import ActivationError


class OnlyNumbers:
    """A logits processor for transformers' `generate` that checks the scores of every token.

    Not a subclass of transformers' LogitsProcessor, whose import takes seconds. Raises as `check_numbers`.
    """

    def __call__(
        self, input_ids: Int[Tensor, "batch seen"], scores: Float[Tensor, "batch vocabulary"]
    ) -> Float[Tensor, "batch vocabulary"]:
        """Return the scores unchanged."""
        check_numbers(scores)
        return scores


def check_numbers(scores: Float[Tensor, "*row vocabulary"]) -> None:
    """Raise ActivationError for scores that are nan or infinite; minus infinity marks a token that is ruled out."""
    if not bool((scores < torch.inf).all()):
        raise ActivationError(
            "the model's scores of the next token are not numbers: activations are beyond the range of its number "
            "format; steer at a smaller strength, or load the model in float32"
        )
