"""Padding: which columns of a batch's rows are tokens, read from whatever mask the decoder was given.

A two-dimensional mask says it directly. If `generate` has prepared another mask, the one that `generate` was given says
it. In a prepared mask (batch, 1, token, column), those of the pass's own tokens are real that any of them may attend
to: what a sliding window hides is never taken for padding.

Limitations: other kinds of mask are not read, and all tokens count as real.
"""

import torch
from jaxtyping import Bool
from torch import Tensor

from dsas.model.foreign import Given


def real_columns(
    mask: Given, prompt: Tensor | None, before: Tensor | None, rows: int, start: int, columns: int
) -> Bool[Tensor, "row column"] | None:
    """Return which of the first start + columns columns are real; None if there is no sign of padding.

    prompt: the mask that `generate` was given. before: what is known of the first `start` columns.
    """
    total = start + columns
    new: Tensor | None = None
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape[-1] >= total:
            return mask[:, :total].bool()
        new = mask[:, -columns:].bool() if mask.shape[-1] == columns else None
    elif prompt is not None and rows % len(prompt) == 0:
        known = prompt[:, :total].bool().repeat_interleave(rows // len(prompt), 0)
        return torch.cat([known, known.new_ones(rows, total - known.shape[1])], 1)
    elif mask is not None:
        new = _prepared(mask, start, columns)
    if before is None and new is None:
        return None
    like = new if new is not None else before
    assert like is not None
    before = like.new_ones(rows, 0) if before is None else before[:, :start]
    before = torch.cat([before, like.new_ones(rows, start - before.shape[1])], 1)
    return torch.cat([before, like.new_ones(rows, columns) if new is None else new], 1)


def _prepared(mask: Given, start: int, columns: int) -> Bool[Tensor, "row column"] | None:
    """Read from a mask (batch, 1, token, column), prepared for attention, which of a pass's own tokens are real."""
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values()), None))
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-1] < columns:
        return None
    own = mask[:, 0, :, start : start + columns] if mask.shape[-1] >= start + columns else mask[:, 0, :, -columns:]
    return (own if own.dtype == torch.bool else own == 0).any(1)
