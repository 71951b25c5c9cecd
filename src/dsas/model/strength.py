"""Strength: what a caller may give for it, and how a value per row is spread over a batch."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from dsas.errors import OptionError, StrengthError

Strength = float | Sequence[float] | Tensor
PromptTokens = int | Sequence[int] | Tensor | None


def per_row(
    values: Num[Tensor, " row"], rows: int, what: str = "strengths", *, copies: int = 1
) -> Num[Tensor, " batch"]:
    """Spread values over a batch: row i of k * n gets number i // k, as generate() orders beams and samples.

    copies: how often the rows are repeated as a whole, one copy after another, as branches of guidance are; 0 if
    unknown, in which case only one value, or one per row, can be given.
    Raises StrengthError (OptionError for anything but strengths) when the batch is not a multiple of the values given.
    """
    if copies == 0 and len(values) not in (1, rows):
        kind = StrengthError if what == "strengths" else OptionError
        raise kind(
            f"{len(values)} {what} were given, and which belongs to which of the {rows} rows is unknown "
            f"here; give one, or {rows}"
        )
    copies = copies or 1
    own = rows // copies
    if own % len(values):
        kind = StrengthError if what == "strengths" else OptionError
        raise kind(f"{len(values)} {what} were given but the batch has {own} rows; give one, or {own}")
    return values.repeat_interleave(own // len(values)).repeat(copies)


def per_request(values: Num[Tensor, " row"], numbers: Sequence[int], what: str = "strengths") -> Num[Tensor, " batch"]:
    """Return the values of these requests by their numbers; a single value is for every request.

    Raises StrengthError (OptionError for anything but strengths) for a request without a value.
    """
    if len(values) == 1:
        return values.expand(len(numbers))
    if max(numbers) >= len(values):
        kind = StrengthError if what == "strengths" else OptionError
        raise kind(
            f"{len(values)} {what} were given, but request number {max(numbers)} came; give one, or one for each"
        )
    return values[torch.tensor(numbers, device=values.device)]


def read_strength(strength: Strength) -> Float[Tensor, "*row"]:
    """Return a strength of either sign, a float32 scalar or one value per row. Raises StrengthError unless finite."""
    try:
        value = torch.as_tensor(strength, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise StrengthError(f"strength must be one number or one per row, got {strength!r:.60}") from error
    if value.ndim > 1 or value.numel() == 0:
        raise StrengthError(f"strength must be one number or one per row, got shape {tuple(value.shape)}")
    if not torch.isfinite(value).all():
        raise StrengthError(f"strength must be finite, got {strength}; float32 holds up to 3.4e38")
    return value


def read_prompt_tokens(prompt_tokens: PromptTokens) -> Int[Tensor, " row"] | None:
    """Return prompt lengths as one value per row, or None when not given. Raises OptionError unless whole and >= 1."""
    if prompt_tokens is None:
        return None
    try:
        value = torch.as_tensor(prompt_tokens).reshape(-1)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        value = torch.zeros(0)
    if value.is_floating_point() or value.numel() == 0 or bool((value < 1).any()):
        raise OptionError(f"prompt_tokens must be a number of tokens >= 1, or one per row, got {prompt_tokens!r:.60}")
    return value.long()
