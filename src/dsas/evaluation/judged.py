"""Judged: how natural an independent model finds continuations, given the prompts they continue.

    nats(text) = -1/n sum over the text's n tokens of log p(token | prompt, tokens before),   result = mean over texts

Prompt and continuation are tokenised as one text by the judge's own tokenizer, whichever model wrote them. The tokens
that begin at or after the prompt's end are judged. A token that begins in the prompt and ends in the continuation (as
where the prompt ends in the middle of a word, or in a space that belongs to the next word) is given and not judged, and
so is a token with nothing before it. A continuation with no token to judge gets NaN and is counted in `empty`.

Low is not good by itself: text that repeats itself is easy to predict. Look at distinct-n (`fluency`) as well.

Limitations: texts must fit the judge's context.

Source: conditional perplexity as in DExperts (2105.03023), which exponentiates it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dsas.errors import OptionError, TextsError
from dsas.evaluation.likelihood import log_probabilities, rows_after
from dsas.model.foreign import Foreign, Tokenizer
from dsas.model.tokenizing import pad_token


class JudgedResult(NamedTuple):
    """What the judge says of all continuations.

    mean: the mean of `nats` over the continuations that were judged; NaN when there was none. exp(mean) is a
    perplexity. nats: per token, >= 0; NaN where there was nothing to judge. tokens: how many were judged. empty: how
    many NaNs.
    """

    mean: float
    nats: Float[np.ndarray, "prompt seed"]
    tokens: Int[np.ndarray, "prompt seed"]
    empty: int


def judged(
    judge: Foreign,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    continuations: Sequence[Sequence[str]],
    *,
    batch_size: int = 32,
    special_tokens: bool = True,
) -> JudgedResult:
    """Judge continuations as `sample_continuations` returns them: per seed one text per prompt, without the prompt.

    judge: a causal language model other than the writer, unsteered; tokenizer: its own, a fast one. special_tokens:
    whether the tokenizer adds special tokens, as for raw text; prompts from its chat template have them already.
    Raises TextsError for no prompts or seeds of another length, OptionError for `batch_size` < 1 or a slow tokenizer.
    """
    if isinstance(prompts, str) or not prompts or not continuations:
        raise TextsError("expected at least one prompt, and for every seed a list of continuations")
    uneven = [seed for seed, texts in enumerate(continuations) if isinstance(texts, str) or len(texts) != len(prompts)]
    if uneven:
        raise TextsError(
            f"expected one text per prompt for every seed ({len(prompts)}); not so for seeds {uneven[:10]}"
        )
    if batch_size < 1:
        raise OptionError(f"expected a batch size of at least 1, got {batch_size}")
    texts = [text for seed in continuations for text in seed]
    rows = rows_after(
        tokenizer, list(prompts) * len(continuations), texts, straddling="given", special_tokens=special_tokens
    )
    found = log_probabilities(judge, rows, pad=pad_token(tokenizer), batch_size=batch_size)
    flat = [-logs.double().mean().item() for logs in found]  # a mean of nothing is NaN
    nats = np.array(flat).reshape(len(continuations), -1).T
    tokens = np.array([len(logs) for logs in found]).reshape(nats.T.shape).T
    empty = tokens == 0
    mean = float(nats[~empty].mean()) if not empty.all() else float("nan")
    return JudgedResult(mean, nats, tokens, int(empty.sum()))
