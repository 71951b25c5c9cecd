"""Token batches: rows of tokens in batches that are padded here, on the side asked for, with masks.

A tokenizer without a padding token is as good as any, and none is changed. Rows are sorted by length, so that little is
padded, and carry the number of their text.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dsas.errors import OptionError
from dsas.model.foreign import Foreign


class Batch(NamedTuple):
    """Padded rows.

    rows: which row each one was. mask: True on real tokens. counted: True on those that count, all real ones unless
    something else is asked for; see `dsas.model.rendering`.
    """

    rows: list[int]
    tokens: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    counted: Bool[Tensor, "batch token"]


def greedy(new_tokens: int, pad: int) -> Foreign:
    """Return what makes a model's `generate` take the likeliest token each time, `new_tokens` times at most."""
    from transformers import GenerationConfig

    # top_k=50 is what transformers takes for unset; any other value would make it warn.
    plain = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
    return GenerationConfig(**plain, max_new_tokens=new_tokens, pad_token_id=pad)


def batches(
    rows: Sequence[Sequence[int]],
    size: int,
    *,
    pad: int,
    side: Literal["left", "right"],
    counted: Sequence[Sequence[bool]] | None = None,
) -> Iterator[Batch]:
    """Give `rows` in batches of at most `size`, the longest rows first, filled with the token `pad` on one side.

    counted: which tokens of each row count; all when not given. Raises OptionError for a size below 1.
    """
    if size < 1:
        raise OptionError(f"expected a batch size of at least 1, got {size}")
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        width = len(rows[index[0]])
        tokens = torch.full((len(index), width), pad, dtype=torch.long)
        mask, those = (torch.zeros(len(index), width, dtype=torch.bool) for _ in range(2))
        for place, row in enumerate(index):
            where = slice(width - len(rows[row]), width) if side == "left" else slice(0, len(rows[row]))
            tokens[place, where] = torch.tensor(rows[row])
            mask[place, where] = True
            if counted is not None:
                those[place, where] = torch.tensor(counted[row])
        yield Batch(index, tokens, mask, mask if counted is None else those)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as a model takes it."""
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}
