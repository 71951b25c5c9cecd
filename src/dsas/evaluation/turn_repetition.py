"""Turn repetition: does a model repeat itself over the turns of a conversation?

    within(turn) = 1 - different 4-grams of the answer / its 4-grams
    across(turn) = 4-grams of the answer that an earlier answer of the conversation holds / its 4-grams
    reuse(turn)  = mean over the answer's sentences of the largest cosine to a sentence of an earlier answer

Steering that pushes every token in one direction may end up saying the same thing in every turn. `reuse` finds it in
other words, too; its usual value depends on the topic, so compare it with the unsteered model's on the same questions.

Limitations: words are separated by spaces and taken in lower case; the user's words do not count, though a model may
repeat them. An answer of fewer than four words has no value (NaN), nor has the first turn across turns.

Source: seq-rep-4, Welleck et al. 2020 (1908.04319), within an answer; over turns, 2604.08169.
"""

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dsas.errors import TextsError
from dsas.evaluation.fluency import Gram, four_grams, repetition

_END = re.compile(r"(?<=[.!?])\s+")
Embed = Callable[[Sequence[str]], Float[np.ndarray, "text dim"]]


class TurnRepetition(NamedTuple):
    """Shares in [0, 1] by conversation and turn, NaN where there is nothing to measure."""

    within: Float[np.ndarray, "conversation turn"]
    across: Float[np.ndarray, "conversation turn"]


def turn_repetition(conversations: Sequence[Sequence[str]]) -> TurnRepetition:
    """Measure the answers of conversations that all have the same number of turns.

    Raises TextsError for no conversations, no turns, or different numbers of them.
    """
    turns = _checked(conversations)
    within, across = (np.full((len(conversations), turns), np.nan) for _ in range(2))
    for row, answers in enumerate(conversations):
        before: set[Gram] = set()
        for turn, answer in enumerate(answers):
            grams = four_grams(answer)
            if (own := repetition(answer)) is not None:
                within[row, turn] = own
                if turn:
                    across[row, turn] = sum(gram in before for gram in grams) / len(grams)
            before.update(grams)
    return TurnRepetition(within, across)


def reuse(conversations: Sequence[Sequence[str]], embed: Embed) -> Float[np.ndarray, "conversation turn"]:
    """Return by conversation and turn how near the answer's sentences are to earlier ones, cosines in [-1, 1].

    embed: turns texts into unit vectors, such as `dsas.evaluation.sentence_embeddings.SentenceEmbeddings()`.
    The first turn, and an answer without words, have NaN. Raises what `turn_repetition` raises.
    """
    found = np.full((len(conversations), _checked(conversations)), np.nan)
    for row, answers in enumerate(conversations):
        before: list[np.ndarray] = []
        for turn, answer in enumerate(answers):
            sentences = [one for one in _END.split(answer.strip()) if one]
            if not sentences:
                continue
            vectors = embed(sentences)
            if before:
                found[row, turn] = (vectors @ np.concatenate(before).T).max(axis=1).mean()
            before.append(vectors)
    return found


def _checked(conversations: Sequence[Sequence[str]]) -> int:
    turns = {len(answers) for answers in conversations}
    if len(turns) != 1 or turns == {0} or any(isinstance(answers, str) for answers in conversations):
        raise TextsError(f"expected conversations with the same number of answers, got lengths {sorted(turns)}")
    return turns.pop()
