"""Explained: what steering did to one text, as plain data that every view is made from.

It does not say how it was measured.
"""

import math
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor


class Choice(NamedTuple):
    """One possible next token and its probability in [0, 1]."""

    token: str
    probability: float


class NextTokens(NamedTuple):
    """How steering changed the distribution of the next token, after each token.

    kl: KL(unsteered || steered) in nats, >= 0. before, after: the likeliest next tokens, unsteered and steered.
    """

    kl: tuple[float, ...]
    before: tuple[tuple[Choice, ...], ...]
    after: tuple[tuple[Choice, ...], ...]


class Comparison(NamedTuple):
    """A steered continuation and the unsteered one of the same prompt.

    prompt_tokens: how many of the text's tokens are the prompt; the others are the steered continuation.
    unsteered: the tokens of the other continuation. first_difference: index within the continuations of the first
    token that differs, or that only one of them has; None when they are the same.
    """

    prompt_tokens: int
    unsteered: tuple[str, ...]
    first_difference: int | None


class Turn(NamedTuple):
    """The tokens [start, stop) of one message of a conversation, with what the template puts before it."""

    role: str
    start: int
    stop: int


class Explained(NamedTuple):
    """One text: its real tokens and, by name ("strength", "regulator", "dose", "alone"), values >= 0 (site, token).

    strength: the requested strength; None if unknown. turns: those of a conversation, or of a prompt with its
    completion, in their order; every token is in one. counted: which of its tokens count as the answer. Both are empty
    for a text.
    """

    label: str
    tokens: tuple[str, ...]
    sites: tuple[str, ...]
    strength: float | None
    values: dict[str, Float[Tensor, "site token"]]
    next_tokens: NextTokens | None = None
    comparison: Comparison | None = None
    turns: tuple[Turn, ...] = ()
    counted: tuple[bool, ...] = ()

    def by_turn(self) -> list[dict[str, Any]]:
        """Return each turn with its mean applied strength, over its tokens and all sites."""
        means = self.means()
        return [
            {**turn._asdict(), "mean_strength": sum(means[turn.start : turn.stop]) / max(turn.stop - turn.start, 1)}
            for turn in self.turns
        ]

    def roles(self) -> list[str]:
        """Return the role of each token; empty for a text."""
        return [turn.role for turn in self.turns for _ in range(turn.start, turn.stop)]

    def means(self) -> list[float]:
        """Return the applied strength of every token, averaged over sites."""
        return self.values["strength"].mean(0).tolist()

    def as_dict(self) -> dict[str, Any]:
        """Return the text and its strengths as JSON-ready values; values that were not recorded are null."""
        plain: dict[str, Any] = {"label": self.label, "tokens": self.tokens, "asked": self.strength}
        plain |= {name: _plain(value) for name, value in self.values.items()}
        if self.next_tokens is not None:
            plain["next_tokens"] = self.next_tokens._asdict()
        if self.comparison is not None:
            plain["comparison"] = self.comparison._asdict()
        if self.turns:
            plain |= {"turns": self.by_turn(), "counted": self.counted}
        return plain


def _plain(values: Float[Tensor, "site token"]) -> list[list[float | None]]:
    return [[None if math.isnan(value) else value for value in row] for row in values.tolist()]
