"""Divergence: how far steering moves what a model would say next on texts that it should leave alone.

    KL(p || q) = sum over tokens v of p(v) (log p(v) - log q(v)),   p unsteered, q steered,   in nats, >= 0
    result     = mean over texts of the mean over the text's tokens

Every token of a text, special ones included, has a distribution after it, and all of them count. In conversations, and
in prompts with completions, only the distributions that the answer's tokens are drawn from count. Unlike perplexity it
needs no right answer, and it cannot improve by chance: 0 means that nothing was changed at all.

A token that the model gives probability 0, such as a masked one, adds nothing.

Both passes run batch by batch, and only one batch's two sets of logits exist at a time, in the model's precision; the
logarithms are taken in float32, one text at a time.

Limitations: of texts longer than `max_tokens` the rest is not read.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float

from dsas.errors import OptionError
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.kl_divergence import kl_divergence
from dsas.model.rendering import read_through
from dsas.model.running import logits_on
from dsas.model.token_batches import batches
from dsas.model.tokenizing import pad_token


class DivergenceResult(NamedTuple):
    """The mean over the texts, and each text's own mean in the order given, in nats per token."""

    mean: float
    per_text: Float[np.ndarray, " text"]


def divergence(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[Given],
    steered: Callable[[], AbstractContextManager[object]],
    *,
    max_tokens: int = 50,
    batch_size: int = 16,
) -> DivergenceResult:
    """Return how far `model` inside `steered()` is from `model` as it is.

    steered: gives, for every batch, a context manager inside which the model is steered, such as
    `lambda: steering.apply(model, strength, record=False)`. max_tokens: length that each text, or answer, is cut to,
    special tokens included.
    Raises TextsError for no texts or one without tokens, OptionError for `max_tokens` or `batch_size` < 1.
    """
    if max_tokens < 1:
        raise OptionError(f"expected max_tokens >= 1, got {max_tokens}")
    rows = read_through(tokenizer, texts, max_tokens)
    prompts, per_text = [row.prompt for row in rows], np.zeros(len(rows))
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches([row.ids for row in rows], batch_size, pad=pad_token(tokenizer), side="right"):
            before = logits_on(model, batch)
            with steered():
                after = logits_on(model, batch, prompts=prompts)
            for place, row in enumerate(batch.rows):
                asked = torch.tensor(rows[row].asked, device=before.device).nonzero().flatten()
                nats = kl_divergence(before[place, asked], after[place, asked]).clamp(min=0)
                per_text[row] = nats.double().mean().item()
            del before, after  # or they would be in memory together with the next batch's
    return DivergenceResult(float(per_text.mean()), per_text)
