"""Token batches: texts tokenised, and put into batches that are padded here, on the side asked for, with a mask.

A tokenizer without a padding token is as good as any, and none is changed. Rows are sorted by length, so that little is
padded, and carry the number of their text.
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from dsas.errors import DsasWarning, OptionError, TextsError
from dsas.model.examples import Spans
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.reading import Reading


class Batch(NamedTuple):
    """Padded rows: `rows` says which row each one was; `mask` is True on real tokens."""

    rows: list[int]
    tokens: Int[Tensor, "batch token"]
    mask: Bool[Tensor, "batch token"]


def text_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """Return the tokenizer of texts: what came, or the one that a processor of texts and pictures holds.

    Raises OptionError for anything else.
    """
    own = getattr(tokenizer, "tokenizer", tokenizer)
    if not isinstance(own, nn.Module) and (callable(own) or hasattr(own, "decode")):
        return own
    raise OptionError(
        f"expected a tokenizer, or a processor that has one, got {type(tokenizer).__name__}; load it with "
        "transformers.AutoTokenizer.from_pretrained(name of the model)"
    )


def tokenize(tokenizer: Tokenizer, texts: Sequence[str], *, special_tokens: bool = True) -> list[list[int]]:
    """Return the token numbers of each text, by default with the special tokens that the tokenizer adds.

    Raises TextsError when there is no text, when one text came instead of a list, or when a text has no tokens.
    """
    if isinstance(texts, str):
        raise TextsError(f"expected a list of texts, got one text: {texts[:40]!r}")
    if not texts:
        raise TextsError("expected at least one text, got none")
    found = text_tokenizer(tokenizer)(list(texts), add_special_tokens=special_tokens, verbose=False)
    rows = [list(row) for row in found["input_ids"]]
    empty = [index for index, row in enumerate(rows) if not row]
    if empty:
        raise TextsError(f"expected texts with at least one token; these have none: {empty[:10]}")
    return rows


def greedy(new_tokens: int, pad: int) -> Foreign:
    """Return what makes a model's `generate` take the likeliest token each time, `new_tokens` times at most."""
    from transformers import GenerationConfig

    # top_k=50 is what transformers takes for unset; any other value would make it warn.
    plain = {"do_sample": False, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}
    return GenerationConfig(**plain, max_new_tokens=new_tokens, pad_token_id=pad)


def token_spans(tokenizer: Tokenizer, texts: Sequence[str], spans: Sequence[Spans]) -> list[list[bool | None]]:
    """Return for each token of each text whether a span covers a character of it; None for special tokens.

    Raises OptionError for a tokenizer that does not tell where its tokens are in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise OptionError("spans need a fast tokenizer, which tells where in the text each token stands")
    found = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)
    return [
        [any(a < stop and b > start for start, stop in of_text) if b > a else None for a, b in offsets]
        for offsets, of_text in zip(found["offset_mapping"], spans, strict=True)
    ]


def batches(rows: Sequence[Sequence[int]], size: int, *, pad: int, side: Literal["left", "right"]) -> Iterator[Batch]:
    """Give `rows` in batches of at most `size`, the longest rows first, filled with the token `pad` on one side."""
    if size < 1:
        raise OptionError(f"expected a batch size of at least 1, got {size}")
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row]))
    for start in range(0, len(order), size):
        index = order[start : start + size]
        width = len(rows[index[0]])
        tokens = torch.full((len(index), width), pad, dtype=torch.long)
        mask = torch.zeros(len(index), width, dtype=torch.bool)
        for place, row in enumerate(index):
            where = slice(width - len(rows[row]), width) if side == "left" else slice(0, len(rows[row]))
            tokens[place, where] = torch.tensor(rows[row])
            mask[place, where] = True
        yield Batch(index, tokens, mask)


def pad_token(tokenizer: Tokenizer) -> int:
    """Return a token number to fill rows with; the mask hides it, so any will do where the tokenizer has none."""
    own = text_tokenizer(tokenizer)
    for token in (own.pad_token_id, own.eos_token_id):
        if isinstance(token, int):
            return token
    return 0


def chat_prompts(tokenizer: Tokenizer, prompts: Sequence[str]) -> list[str]:
    """Return each prompt as the user's turn of the model's chat template, ready for the answer; special tokens are in.

    Raises OptionError when the tokenizer has no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise OptionError("this model's tokenizer has no chat template: continue the prompts as plain text")
    turns = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]


def read_batches(tokenizer: Tokenizer, texts: Sequence[str], reading: Reading) -> list[Batch]:
    """Return the texts as batches, padded on the right. Warns of texts that are cut."""
    rows = cut_rows(tokenize(tokenizer, texts), reading.max_tokens)
    return list(batches(rows, reading.batch_size, pad=pad_token(tokenizer), side="right"))


def inputs_of(batch: Batch) -> dict[str, Tensor]:
    """Return a batch as a model takes it."""
    return {"input_ids": batch.tokens, "attention_mask": batch.mask.long()}


def cut_rows(rows: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Return rows of at most `max_tokens` tokens, and warn of those that were longer."""
    if max_tokens < 1:
        raise OptionError(f"max_tokens must be at least 1, got {max_tokens}")
    too_long = sum(len(row) > max_tokens for row in rows)
    if too_long:
        warnings.warn(f"{too_long} texts were cut to max_tokens={max_tokens}", DsasWarning, stacklevel=5)
    return [row[:max_tokens] for row in rows]
