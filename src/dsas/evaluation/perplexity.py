"""Perplexity: how surprised a model, steered or not, is by ordinary texts.

    loss(text) = -1/(n-1) sum_{i=2..n} log p(token_i | tokens before)      the log-loss, in nats per predicted token
    ppl(text)  = exp(loss(text)),   mean = mean over texts of ppl(text)
    of_tokens  = exp(mean over all predicted tokens of the log-loss)

The mean over texts is the paper's. The few most surprising texts dominate it: it may fall although every token becomes
less likely. Budgets, sweeps and reports of dsas use `of_tokens`, to which every token contributes.

The first token is given, not predicted: that is <bos> where the tokenizer adds one, else the text's own first token.
So numbers of models with different tokenizers cannot be compared. In conversations, and in prompts with completions,
the answer is predicted, including its end-of-turn token, and everything before it is given.

Limitations: of texts longer than `max_tokens` the rest is not read; there is no sliding window.

Source: arXiv 2512.03661 (Wikipedia sentences of at most 50 tokens).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch.nn.functional import cross_entropy

from dsas.errors import OptionError, TextsError
from dsas.model.evaluation_mode import evaluation_mode
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.model.rendering import read_through
from dsas.model.running import logits_on
from dsas.model.token_batches import batches
from dsas.model.tokenizing import pad_token


class PerplexityResult(NamedTuple):
    """Perplexities (1 is certainty) and the log-losses that they are made of.

    mean: mean over texts. per_text: perplexity of each text, in the order given. of_tokens: perplexity of all tokens
    together. losses: the log-loss of each text, in nats per predicted token. tokens: how many tokens of each text were
    predicted.
    """

    mean: float
    per_text: Float[np.ndarray, " text"]
    of_tokens: float
    losses: Float[np.ndarray, " text"]
    tokens: Int[np.ndarray, " text"]


def perplexity(
    model: Model,
    tokenizer: Tokenizer,
    texts: Sequence[Given],
    *,
    max_tokens: int = 50,
    batch_size: int = 32,
) -> PerplexityResult:
    """Return the perplexity of `model` on `texts`, each cut to `max_tokens` tokens, those the tokenizer adds included.

    A text may be a conversation, or a prompt with its completion, as in `dsas.fit`; its answer is cut to `max_tokens`.

    The model gives batch_size * max_tokens * vocabulary logits in its own precision; the logarithms are taken in
    float32, one text at a time.
    Raises TextsError for no texts or a text with nothing to predict, OptionError for `max_tokens` < 2.
    """
    if max_tokens < 2 or batch_size < 1:
        raise OptionError(f"expected max_tokens >= 2 and batch_size >= 1, got {max_tokens} and {batch_size}")
    rows = read_through(tokenizer, texts, max_tokens)
    judged = [torch.tensor(row.judged) for row in rows]
    short = [index for index, own in enumerate(judged) if not own.any()]
    if short:
        raise TextsError(
            f"expected texts of at least 2 tokens (the first is not predicted); too short: {short[:10]}, the first of "
            f"them {texts[short[0]]!r}"
        )
    prompts, losses = [row.prompt for row in rows], np.zeros(len(rows))
    with torch.no_grad(), evaluation_mode(model):
        for batch in batches([row.ids for row in rows], batch_size, pad=pad_token(tokenizer), side="right"):
            logits = logits_on(model, batch, prompts=prompts)
            tokens = batch.tokens.to(logits.device)
            for place, row in enumerate(batch.rows):
                at = judged[row].nonzero().flatten().to(logits.device)
                losses[row] = cross_entropy(logits[place, at - 1].float(), tokens[place, at]).item()
    tokens = np.array([int(own.sum()) for own in judged])
    with np.errstate(over="ignore"):  # a model that broke down has infinite perplexity
        per_text, of_tokens = np.exp(losses), float(np.exp(losses @ tokens / tokens.sum()))
    return PerplexityResult(float(per_text.mean()), per_text, of_tokens, losses, tokens)
