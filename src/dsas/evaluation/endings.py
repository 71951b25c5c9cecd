"""Endings: do answers end, and do they end where a sentence does?

    endless   = answers that used up the tokens they were allowed, so that they were cut off / answers
    broken    = answers that ended by themselves, but not at the end of a sentence / answers

Steering that weakens the end of the turn makes answers endless; steering that strengthens it breaks them off.

Limitations: tokens are counted by tokenising the answer again, and a model may spell a text in more tokens than its
tokenizer would, so an answer may count as ended though it was cut off. A sentence ends with . ! ? or their like, or
with a closing bracket, quotation mark or code fence after or instead of them; a list may end without one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dsas.errors import OptionError, TextsError
from dsas.model.foreign import Tokenizer

_ENDS = (".", "!", "?", "…", ")", "]", "}", '"', "'", "”", "’", "`", "。", "！", "？")


class Endings(NamedTuple):
    """One flag of each kind per answer; no answer has both."""

    endless: Bool[np.ndarray, " answer"]
    broken: Bool[np.ndarray, " answer"]


def endings(tokenizer: Tokenizer, answers: Sequence[str], new_tokens: int) -> Endings:
    """Return how answers sampled with at most `new_tokens` tokens end.

    An empty answer is broken. Raises TextsError unless it gets a list of answers, OptionError for `new_tokens` < 1.
    """
    if isinstance(answers, str) or not answers:
        raise TextsError("expected a list of at least one answer")
    if new_tokens < 1:
        raise OptionError(f"expected new_tokens >= 1, got {new_tokens}")
    read = tokenizer(list(answers), add_special_tokens=False)["input_ids"]
    endless = np.array([len(ids) >= new_tokens for ids in read])
    whole = np.array([answer.rstrip().endswith(_ENDS) for answer in answers])
    return Endings(endless, ~endless & ~whole)
