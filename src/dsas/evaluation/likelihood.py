"""Likelihood: how probable a model, steered or not, finds the tokens of a text after its beginning.

    log p(token_i | tokens before),   i = first ... n      in nats, from logits in float32

Text and beginning are tokenised as one string, as the model would read it. Rows are padded on the right, where causal
attention does not see it, so a row gives the same result alone and in any batch. The last token is never fed, because
nothing is read after it; rows that differ in the last token only share one pass. Logits are computed only at positions
that predict something, which limits the cost of a large vocabulary.

Limitations: texts with a common beginning do not share a cache of keys and values, because a regulator with state would
carry what it saw of one text into the next. Texts must fit the model's context.
"""

import inspect
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy

from dsas.errors import OptionError
from dsas.model.device_map import device_of
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.foreign import Model, Tokenizer
from dsas.model.running import logits_on
from dsas.model.token_batches import Batch, TokenRow, batches
from dsas.model.tokenizing import encode

Straddling = Literal["given", "judged"]


class Row(NamedTuple):
    """The tokens of a text; those from `first` (>= 1) on, if any, are judged, each given all tokens before it.

    judged: which tokens from `first` on are judged; None judges all. prompt: number of tokens that the judged text
    continues, or None where it continues nothing.
    """

    tokens: list[int]
    first: int
    judged: list[bool] | None = None
    prompt: int | None = None


def rows_after(
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    texts: Sequence[str],
    *,
    straddling: Straddling,
    special_tokens: bool = True,
) -> list[Row]:
    """Return a row of tokens for each prompt with its text; the text's tokens are judged.

    Tokens are assigned by their characters. One that begins in the prompt and ends in the text is "given" or "judged",
    as asked. A token with nothing before it is given; special tokens after the text are dropped.
    Raises OptionError for a tokenizer that does not say where its tokens are in the text.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise OptionError("likelihoods need a fast tokenizer, which says where in the text each token is")
    if not prompts:
        return []
    wholes = [prompt + text for prompt, text in zip(prompts, texts, strict=True)]
    rows = []
    encoded = encode(tokenizer, wholes, special_tokens=special_tokens, offsets=True)
    for (tokens, offsets), prompt in zip(encoded, prompts, strict=True):
        assert offsets is not None
        side = 0 if straddling == "given" else 1
        bound = len(prompt) + side
        judged = [place for place, span in enumerate(offsets) if span[1] > span[0] and span[side] >= bound]
        end = judged[-1] + 1 if judged else len(tokens)
        first = max(1, judged[0]) if judged else end
        rows.append(Row(list(tokens[:end]), first, prompt=first if prompt else None))
    return rows


def log_probabilities(model: Model, rows: Sequence[Row], *, pad: int, batch_size: int) -> list[Float[Tensor, " _"]]:
    """Return the log-probability of each judged token of every row, in nats; `pad` is any token number."""
    passes: dict[tuple[tuple[int, ...], int, int | None], list[int]] = {}
    for number, row in enumerate(rows):
        if row.first < len(row.tokens):
            media = id(row.tokens) if isinstance(row.tokens, TokenRow) else 0  # equal tokens may have different media
            passes.setdefault((tuple(row.tokens[:-1]), media, row.prompt), []).append(number)
    shared = list(passes.values())
    inputs = [_fed(rows[numbers[0]].tokens) for numbers in shared]
    prompts = [rows[numbers[0]].prompt for numbers in shared]
    found = [torch.zeros(0)] * len(rows)
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches(inputs, batch_size, pad=pad, side="right"):
            readers = [shared[index] for index in batch.rows]
            needed = {at for numbers in readers for number in numbers for at in _predicting(rows[number])}
            positions = sorted(needed)
            logits = _logits(model, batch, positions, prompts)
            for place, numbers in enumerate(readers):
                for number in numbers:
                    row = rows[number]
                    start = positions.index(row.first - 1)
                    judged = torch.tensor(row.tokens[row.first :], device=logits.device)
                    of_row = logits[place, start : start + len(judged)].float()
                    each = -cross_entropy(of_row, judged, reduction="none").cpu()
                    found[number] = each if row.judged is None else each[torch.tensor(row.judged)]
    return found


def _fed(tokens: list[int]) -> list[int]:
    """Return all tokens but the last, after which nothing is read."""
    return tokens.first(len(tokens) - 1) if isinstance(tokens, TokenRow) else tokens[:-1]


def _predicting(row: Row) -> range:
    return range(row.first - 1, len(row.tokens) - 1)


def _logits(
    model: Model, batch: Batch, positions: list[int], prompts: Sequence[int | None]
) -> Float[Tensor, "batch position vocabulary"]:
    """Return the logits at these positions; a model that cannot select positions computes all."""
    device, some = device_of(model), "logits_to_keep" in inspect.signature(model.forward).parameters
    kept = {"logits_to_keep": torch.tensor(positions, device=device)} if some else {}
    logits = logits_on(model, batch, prompts=prompts, **kept)
    return logits if logits.shape[1] == len(positions) else logits[:, positions]
