"""Choices: the values that options can take, and what a shell offers for options that take other values, too.

The lists are those of the library, written again because importing the library takes seconds; a test compares them.
"""

from collections.abc import Callable, Iterable
from typing import Literal

from dsas.regulators import REGULATORS
from dsas.training.objectives import OBJECTIVES
from dsas.transforms import TRANSFORMS

Branch = Literal["conditional", "unconditional", "both"]
DemoModel = Literal["smollm2", "gemma3"]
LearnedForm = Literal["sigmoid", "relu"]
OptimiserName = Literal["adam", "sgd"]
PerSite = Literal["all", "site"]
PrecisionName = Literal["auto", "float32", "bfloat16", "float16"]
Selection = Literal["threshold", "smooth", "top", "all"]
WhichTokens = Literal["auto", "all", "answer", "last", "last-instruction"]

DAMAGES = ("perplexity", "loss", "mean-perplexity", "kl", "accuracy")
DEVICES = ("auto", "cpu", "cuda", "balanced", "sequential")
PARTS = ("text", "thinking", "tool-calls")
OWN_JUDGES = ("ratio", "yes")
SCORERS = ("tox-block", "toxic-comment-classifier", "profanity-check", "character-grams")
SITES = ("residual", "norm", "attention", "mlp", "heads")
STARTS = ("fitted", "scratch")


def offering(values: Iterable[str]) -> Callable[[str], list[str]]:
    """Return what completes an option with those of `values` that begin like what was typed."""

    def complete(incomplete: str) -> list[str]:
        return [value for value in values if value.startswith(incomplete)]

    return complete


objectives, transforms = offering(OBJECTIVES), offering(TRANSFORMS)


def regulators(incomplete: str) -> list[str]:
    """Complete the name of a regulator, or the last factor of a product such as "logistic*posterior"."""
    before, star, last = incomplete.rpartition("*")
    names = [name for name in REGULATORS if name not in ("product", "per-step", "clean")]
    return [f"{before}{star}{name}" for name in offering(names)(last)]
