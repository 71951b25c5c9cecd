"""Token batches: rows of tokens in padded batches with masks.

Padding is done here, on the given side, so a tokenizer needs no padding token, and none is changed. Rows are sorted by
length to keep padding small, and carry the number of their text. Other contents of a row, such as the values of its
pictures, join the batch, one row after another; different sizes are padded with zeros, as by processors.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad as padded

from dsas.errors import OptionError, TextsError
from dsas.model.foreign import Foreign


@final
class TokenRow(list[int]):
    """The tokens of a row with pictures, videos or sounds.

    media: further inputs of the model, by name, as the processor returns them for one row; those with one value per
    token are (1, token). end: number of tokens up to the last one of a medium.
    """

    def __init__(self, ids: Sequence[int], media: Mapping[str, Tensor], end: int) -> None:
        super().__init__(ids)
        self.media, self.end = dict(media), end

    def first(self, count: int) -> "TokenRow":
        """Return the first `count` tokens, with all media. Raises TextsError when a medium would be cut."""
        if count < self.end:
            raise TextsError(
                f"a picture, video or sound ends at token {self.end}, but only {count} tokens are read: raise "
                f"max_tokens, as in dsas.Reading(max_tokens={max(1024, 2 * self.end)})"
            )
        own = {name: value[:, :count] if per_token(name) else value for name, value in self.media.items()}
        return TokenRow(self[:count], own, self.end)


class Batch(NamedTuple):
    """Padded rows.

    rows: number of each row. mask: True on real tokens. counted: True on tokens that count, by default all real ones;
    see `dsas.model.rendering`. media: further inputs of the model, by name. prompts: number of tokens of each row
    before its answer, all of its tokens where there is none; empty if that was not said.
    """

    rows: list[int]
    tokens: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]
    counted: Bool[Tensor, "batch token"]
    media: tuple[tuple[str, Tensor], ...] = ()
    prompts: tuple[int, ...] = ()


def greedy(new_tokens: int, pad: int) -> Foreign:
    """Return the options with which `generate` takes the likeliest token each time, at most `new_tokens` times."""
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
    prompts: Sequence[int | None] | None = None,
    oblong: bool = False,
) -> Iterator[Batch]:
    """Give `rows` in batches of at most `size`, the longest rows first, padded with the token `pad` on one side.

    counted: which tokens of each row count; all when not given. prompts: number of each row's tokens before its
    answer, None for a row without an answer. oblong: pad by one token more where there would be
    as many rows as tokens, so that a layout with tokens first can be told from one with rows first. Raises OptionError
    for a size below 1.
    """
    if size < 1:
        raise OptionError(f"expected a batch size of at least 1, got {size}")
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        width = len(rows[index[0]])
        width += oblong and len(index) == width > 1
        tokens = torch.full((len(index), width), pad, dtype=torch.long)
        mask, those = (torch.zeros(len(index), width, dtype=torch.bool) for _ in range(2))
        for place, row in enumerate(index):
            where = slice(width - len(rows[row]), width) if side == "left" else slice(0, len(rows[row]))
            tokens[place, where] = torch.tensor(rows[row])
            mask[place, where] = True
            if counted is not None:
                those[place, where] = torch.tensor(counted[row])
        media = _together([rows[row] for row in index], width, side)
        ends = [] if prompts is None else [(prompts[row], len(rows[row])) for row in index]
        before = tuple(whole if prompt is None else prompt for prompt, whole in ends)
        yield Batch(index, tokens, mask, mask if counted is None else those, media, before)


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as a model takes it."""
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long(), **dict(batch.media)}


def per_token(name: str) -> bool:
    """Whether a processor's output of this name has one value per token."""
    return name.endswith("token_type_ids")


def filled(name: str, value: Tensor, tokens: int, side: Literal["left", "right"] = "right") -> Tensor:
    """Return a row's values for this many tokens, padded with zeros if there is one value per token."""
    if not per_token(name):
        return value
    missing = tokens - value.shape[1]
    return padded(value, (missing, 0) if side == "left" else (0, missing))


def _together(
    rows: Sequence[Sequence[int]], width: int, side: Literal["left", "right"]
) -> tuple[tuple[str, Tensor], ...]:
    """Return the rows' further inputs by name; rows without media have only zeros per token."""
    media = [row.media if isinstance(row, TokenRow) else {} for row in rows]
    found: list[tuple[str, Tensor]] = []
    for name in dict.fromkeys(name for one in media for name in one):
        kept = [filled(name, one[name], width, side) for one in media if name in one]
        if per_token(name):
            values = iter(kept)
            kept = [next(values) if name in one else kept[0].new_zeros(1, width) for one in media]
        found.append((name, torch.cat(_alike(kept))))
    return tuple(found)


def _alike(values: Sequence[Tensor]) -> list[Tensor]:
    """Return tensors padded with zeros at their ends to equal sizes in all but the first dimension."""
    sizes = [max(value.shape[place] for value in values) for place in range(1, values[0].ndim)]
    found = []
    for value in values:
        missing = [(0, size - own) for size, own in zip(sizes, value.shape[1:], strict=True)]
        found.append(padded(value, [count for ends in reversed(missing) for count in ends]))
    return found
