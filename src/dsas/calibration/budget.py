"""Budget: how much damage is allowed, and how damage is read from what was measured of each text.

    perplexity        exp(loss(steered) - loss(unsteered))       1 is none, 1.05 is five per cent
    loss              loss(steered) - loss(unsteered)            nats per token, 0 is none
    mean-perplexity   mean(steered) / mean(unsteered)            means over the texts' perplexities; 1 is none
    kl                mean KL(unsteered || steered)              nats per token, 0 is none
    accuracy          100 (mean(unsteered) - mean(steered))      points lost, 0 is none

with loss the mean log-loss of all predicted tokens together, and mean the mean over texts; each for every kind of text
by itself, then their mean over the kinds, or the worst of them.

The mean of the perplexities of texts is what arXiv 2512.03661 reports. A few texts dominate it, so it can fall although
every token became less likely.

Limitations: all kinds of text have the same weight.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError, closest
from dsas.model.foreign import Foreign, Model, Tokenizer

Damage = Literal["perplexity", "loss", "mean-perplexity", "kl", "accuracy"]
Value = Sequence[float]  # a text's sum over its tokens, and their number; its value and 1 where tokens do not count
Measure = Callable[[Any, Any, Sequence[Foreign]], Sequence[float] | Sequence[Value]]
NONE: dict[Damage, float] = {"perplexity": 1.0, "loss": 0.0, "mean-perplexity": 1.0, "kl": 0.0, "accuracy": 0.0}
BY_TOKEN: tuple[Damage, ...] = ("perplexity", "loss")
MAX_TOKENS = 50


class Budget(NamedTuple):
    """The largest damage of one kind that steering may do.

    damage: "perplexity", "loss", "mean-perplexity", "kl" or "accuracy", in the units of its formula. most: what is
    allowed, > 0. worst: whether it must hold for the worst kind of text, and not only for the mean over the kinds. on:
    the kinds it is measured on; all when empty.
    sure: share of bootstrap draws of the tuning texts, within each kind, that must keep the budget: 0, or from 0.5 to
    below 1. At 0 only the tuning texts themselves must keep it, and about half of all other texts then exceed it.
    measure: a function (model, tokenizer, texts of one kind) -> one value per text, of the model as it is when called,
    steered or not; for "perplexity" and "loss" a pair: the sum of the text's log-losses in nats, and the number of its
    tokens. Required for "accuracy" (1 right, 0 wrong); replaces the built-in one for the others. A "text" may then be
    anything JSON-ready, such as a question. A checkpoint identifies it by its `__qualname__`.
    """

    damage: Damage
    most: float
    worst: bool = False
    on: tuple[str, ...] = ()
    measure: Measure | None = None
    sure: float = 0.0

    def check(self, kinds: Iterable[str]) -> None:
        """Raise OptionError for an invalid value, or a kind of text that is not among `kinds`."""
        if self.damage not in get_args(Damage):
            raise OptionError(f"unknown budget {self.damage!r}; closest: {closest(self.damage, get_args(Damage))}")
        if not 0 < self.most < math.inf:
            raise OptionError(f"the budget of {self.damage} must be finite and > 0, got {self.most}")
        if not (self.sure == 0 or 0.5 <= self.sure < 1):
            raise OptionError(f"sure must be 0, or from 0.5 to below 1, got {self.sure}")
        if self.damage == "accuracy" and self.measure is None:
            raise OptionError("a budget of accuracy needs its measure: Budget('accuracy', 2, measure=...)")
        kinds = list(kinds)
        for kind in self.on:
            if kind not in kinds:
                raise OptionError(f"the budget of {self.damage} is on kind {kind!r}; closest: {closest(kind, kinds)}")

    def kinds(self, of: Iterable[str]) -> list[str]:
        """Return those kinds of text that it is measured on."""
        return [kind for kind in of if kind in self.on or not self.on]

    @property
    def name(self) -> str:
        """The name under which its measurements are stored."""
        measured = "log-loss" if self.damage in BY_TOKEN else self.damage
        return measured if self.measure is None else f"{measured} {getattr(self.measure, '__qualname__', '')}"

    @property
    def compares(self) -> bool:
        """Whether its damage is that of the steered against the unsteered values, and not the steered ones alone."""
        return self.damage != "kl"

    def values(
        self, model: Model, tokenizer: Tokenizer, texts: Sequence[Foreign], steered: AbstractContextManager[object]
    ) -> list[Value]:
        """Return what is measured of each text inside `steered`, which may be entered several times.

        Raises OptionError when a measure of the user's own gives something else.
        """
        if self.measure is None and self.damage == "kl":
            from dsas.evaluation.divergence import divergence  # loads transformers, which `import dsas` must not

            nats = divergence(model, tokenizer, texts, lambda: steered, max_tokens=MAX_TOKENS).per_text
            return [(value, 1.0) for value in nats.tolist()]
        with steered:
            if self.measure is None:
                from dsas.evaluation.perplexity import perplexity

                found = perplexity(model, tokenizer, texts, max_tokens=MAX_TOKENS)
                if self.damage == "mean-perplexity":
                    return [(value, 1.0) for value in found.per_text.tolist()]
                return list(
                    zip((found.losses * found.tokens).tolist(), found.tokens.astype(float).tolist(), strict=True)
                )
            given = list(self.measure(model, tokenizer, texts))
        if len(given) != len(texts):
            raise OptionError(f"the measure of {self.damage} must give one value per text, {len(texts)}: {len(given)}")
        try:
            if self.damage in BY_TOKEN:
                return [(float(nats), float(tokens)) for nats, tokens in given]  # pyright: ignore[reportGeneralTypeIssues]
            return [(float(value), 1.0) for value in given]  # pyright: ignore[reportArgumentType]
        except (TypeError, ValueError) as error:
            asked = "a pair (nats, tokens)" if self.damage in BY_TOKEN else "a number"
            raise OptionError(
                f"the measure of {self.damage} must give {asked} per text, got {given[0]!r:.60}; one that gives the "
                "perplexity of each text is a measure of 'mean-perplexity'"
            ) from error

    def of_kind(
        self, draws: Float[np.ndarray, "draw text"], steered: Sequence[Value], unsteered: Sequence[Value]
    ) -> Float[np.ndarray, " draw"]:
        """Return the damage on one kind of text, each text counted as often as a draw has it."""
        with np.errstate(invalid="ignore", over="ignore"):  # callers handle values that are not finite
            after = _mean(draws, steered)
            if not self.compares:
                return after
            before = _mean(draws, unsteered)
            if self.damage == "mean-perplexity":
                return after / before
            if self.damage == "accuracy":
                return 100 * (before - after)
            return after - before if self.damage == "loss" else np.exp(after - before)

    def over_kinds(self, damages: Float[np.ndarray, "kind draw"]) -> Float[np.ndarray, " draw"]:
        """Return the damage over all kinds of text."""
        return damages.max(axis=0) if self.worst else damages.mean(axis=0)


def _mean(draws: Float[np.ndarray, "draw text"], values: Sequence[Value]) -> Float[np.ndarray, " draw"]:
    sums, counts = np.array(values, float).T
    return draws @ sums / (draws @ counts)
