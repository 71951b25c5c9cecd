"""Text: the transformers end; sets of texts checked, tokenised, and put into batches.

Batches are padded here, on the right, with an attention mask: a tokenizer without a padding token is as good as any,
and none is changed. Rows are sorted by length, so that little is padded, and carry the number of their text.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from dsas.errors import DsasWarning, TextsError

MINIMUM_TEXTS = 4


class TextBatch(NamedTuple):
    """Some texts ready for a model: `rows` are their numbers in the set they come from, inputs (batch, token)."""

    rows: list[int]
    input_ids: Int[Tensor, "batch token"]
    attention_mask: Int[Tensor, "batch token"]


def check_texts(name: str, texts: Sequence[str], *, minimum: int = MINIMUM_TEXTS) -> list[str]:
    """Return the texts as a list. Raises TextsError, naming the set, for too few, an empty one, or no text at all."""
    if isinstance(texts, str):
        raise TextsError(f"{name} must be a list of texts, got one string; put it into a list")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise TextsError(f"{name}[{number}] must be a text that is not empty, got {text!r:.60}")
    if len(texts) < minimum:
        raise TextsError(f"{name} must hold at least {minimum} texts, got {len(texts)}")
    return texts


def batches_of(
    tokenizer: Any, texts: Sequence[str], *, batch_size: int = 16, max_tokens: int = 512
) -> list[TextBatch]:
    """Tokenise texts and return them in length-sorted batches of `batch_size` rows.

    Texts longer than `max_tokens` are cut, with a warning. Raises TextsError for a text without a single token.
    """
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    too_long = sum(len(row) > max_tokens for row in ids)
    if too_long:
        warnings.warn(f"{too_long} texts were cut to max_tokens={max_tokens}", DsasWarning, stacklevel=2)
    empty = [number for number, row in enumerate(ids) if not row]
    if empty:
        raise TextsError(f"text {empty[0]} has no tokens: {texts[empty[0]]!r:.60}")
    order = sorted(range(len(ids)), key=lambda number: len(ids[number]))
    chunks = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [_pad(rows, [ids[number][:max_tokens] for number in rows], padding_id(tokenizer)) for rows in chunks]


def padding_id(tokenizer: Any) -> int:
    """Return a token id that may stand in padded places: the padding token, else the end token, else 0."""
    for name in ("pad_token_id", "eos_token_id"):
        value = getattr(tokenizer, name, None)
        if value is not None:
            return int(value)
    return 0


def _pad(rows: list[int], ids: list[list[int]], padding: int) -> TextBatch:
    width = max(map(len, ids))
    input_ids = torch.tensor([row + [padding] * (width - len(row)) for row in ids])
    attention_mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
    return TextBatch(rows, input_ids, attention_mask)


def pad_left(tokenizer: Any, texts: Sequence[str]) -> dict[str, Tensor]:
    """Tokenise prompts for generate(): padded on the left, with an attention mask, both (batch, token)."""
    ids = [list(tokenizer(text)["input_ids"]) for text in texts]
    batch = _pad(list(range(len(ids))), [row[::-1] for row in ids], padding_id(tokenizer))
    return {"input_ids": batch.input_ids.flip(1), "attention_mask": batch.attention_mask.flip(1)}
