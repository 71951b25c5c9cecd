"""Budget: how much damage is allowed, and how damage is read from one value a text.

    perplexity   mean(steered) / mean(unsteered)            1 is none, 1.05 is five per cent
    kl           mean KL(unsteered || steered)              nats a token, 0 is none
    accuracy     100 (mean(unsteered) - mean(steered))      points lost, 0 is none

each for every kind of text by itself; then their mean over the kinds, or the worst of them.

Left out: weights of the kinds.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from jaxtyping import Float

from dsas.errors import OptionError, closest
from dsas.model.foreign import Foreign, Model, Tokenizer

Damage = Literal["perplexity", "kl", "accuracy"]
Measure = Callable[[Any, Any, Sequence[Foreign]], Sequence[float]]
NONE: dict[Damage, float] = {"perplexity": 1.0, "kl": 0.0, "accuracy": 0.0}
MAX_TOKENS = 50


class Budget(NamedTuple):
    """The most damage that steering may do, of one kind.

    damage: "perplexity", "kl" or "accuracy", in the units of its formula. most: what is allowed, > 0. worst: for the
    worst kind of text, else for the mean over the kinds. on: the kinds it is measured on; all when empty.
    measure: a function (model, tokenizer, texts of one kind) -> one value a text, of the model as it is when called,
    steered or not; must be given for "accuracy" (1 right, 0 wrong), replaces ours for the others. A "text" may then be
    anything JSON-ready, such as a question. A checkpoint knows it by its `__qualname__`.
    """

    damage: Damage
    most: float
    worst: bool = False
    on: tuple[str, ...] = ()
    measure: Measure | None = None

    def check(self, kinds: Iterable[str]) -> None:
        """Raise OptionError for a value that means nothing, or a kind of text that is not among `kinds`."""
        if self.damage not in get_args(Damage):
            raise OptionError(f"unknown budget {self.damage!r}; closest: {closest(self.damage, get_args(Damage))}")
        if not 0 < self.most < math.inf:
            raise OptionError(f"the budget of {self.damage} must be finite and > 0, got {self.most}")
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
        """What its measurements are known by."""
        return self.damage if self.measure is None else f"{self.damage} {getattr(self.measure, '__qualname__', '')}"

    @property
    def compares(self) -> bool:
        """Whether its damage is that of the steered against the unsteered values, and not the steered ones alone."""
        return self.damage != "kl"

    def values(
        self, model: Model, tokenizer: Tokenizer, texts: Sequence[Foreign], steered: AbstractContextManager[object]
    ) -> list[float]:
        """Return one value a text of the model as it is inside `steered`, which may be entered several times."""
        if self.measure is None and self.damage == "kl":
            from dsas.evaluation.divergence import divergence  # loads transformers, which `import dsas` must not

            return divergence(model, tokenizer, texts, lambda: steered, max_tokens=MAX_TOKENS).per_text.tolist()
        with steered:
            if self.measure is None:
                from dsas.evaluation.perplexity import perplexity

                return perplexity(model, tokenizer, texts, max_tokens=MAX_TOKENS).per_text.tolist()
            values = [float(value) for value in self.measure(model, tokenizer, texts)]
        if len(values) != len(texts):
            raise OptionError(f"the measure of {self.damage} must give one value a text, {len(texts)}: {len(values)}")
        return values

    def of_kind(
        self, draws: Float[np.ndarray, "draw text"], steered: list[float], unsteered: list[float]
    ) -> Float[np.ndarray, " draw"]:
        """Return the damage on one kind of text, each text counted as often as a draw has it."""
        total = draws.sum(axis=1)
        with np.errstate(invalid="ignore"):  # of what is not finite the callers take care
            after = draws @ np.array(steered) / total
            if not self.compares:
                return after
            before = draws @ np.array(unsteered) / total
            return after / before if self.damage == "perplexity" else 100 * (before - after)

    def over_kinds(self, damages: Float[np.ndarray, "kind draw"]) -> Float[np.ndarray, " draw"]:
        """Return the damage over all kinds of text."""
        return damages.max(axis=0) if self.worst else damages.mean(axis=0)
