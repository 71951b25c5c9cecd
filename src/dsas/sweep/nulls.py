"""Nulls: edits of the same size in directions unrelated to the behaviour, to compare a Steering with.

    random direction    at every site, a vector drawn uniformly from all directions, with the same regulator
    turned round        at every site, the opposite vector, with the same regulator

Both are scaled by one factor, so that on the given texts, at the given strength, the KL divergence from the unsteered
model is that of the Steering. What the Steering does more than its nulls is due to its direction; what they do as well,
any edit of that size does. For small strengths KL grows with the square of the strength for all three, so they stay
matched along a sweep; the KL column of the report shows how well.

Limitations: only for Steerings that add vectors. Each site's direction is drawn separately, so random edits do not
accumulate over the layers as fitted ones do; the factor compensates for this. It is a single draw: another seed gives
another.

Source: matched nulls of arXiv 2608.24335 and 2608.02957.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from dsas.errors import DsasWarning, OptionError
from dsas.evaluation.divergence import divergence
from dsas.model.examples import Given
from dsas.model.foreign import Model, Tokenizer
from dsas.steering.steering import Steering
from dsas.transforms.addition import Addition
from dsas.transforms.affine import Translation

TOLERANCE = 0.02  # relative tolerance on KL
FAR = 0.2  # relative difference of KL beyond which a null is not matched
ROUNDS = 8
RANDOM, TURNED = "random direction", "turned round"


class Null(NamedTuple):
    """A null Steering, the factor its vectors were multiplied by, and KL at the strength, in nats per token."""

    steering: Steering
    factor: float
    kl: float


class Nulls(NamedTuple):
    """The KL of the Steering itself, in nats per token, and its nulls by name."""

    kl: float
    by_name: dict[str, Null]


def adds_vectors(steering: Steering) -> bool:
    """Return whether a Steering adds one vector at every site, so that it has nulls."""
    return all(isinstance(rule.transform, Translation) for rule in steering.rules)


def matched_nulls(
    model: Model, tokenizer: Tokenizer, steering: Steering, texts: Sequence[Given], *, strength: float, seed: int = 0
) -> Nulls:
    """Return the nulls of a Steering at the KL divergence that it has on `texts` at `strength`.

    Raises OptionError for a Steering that does more than add vectors, or changes nothing at that strength.
    """
    if not adds_vectors(steering):
        raise OptionError("nulls are only for Steerings that add vectors, such as transform='caa': this one does more")

    def moved(one: Steering) -> float:
        return divergence(model, tokenizer, texts, lambda: one.apply(model, strength, record=False)).mean

    aim = moved(steering)
    if not aim > 0:
        raise OptionError(
            f"at strength {strength:g} the Steering changes nothing on these texts: there is no KL to match"
        )
    made = {RANDOM: _random(steering, seed), TURNED: _named(-1.0 * steering, steering, TURNED)}
    return Nulls(aim, {name: _matched(name, null, moved, aim) for name, null in made.items()})


def _matched(name: str, null: Steering, moved: Callable[[Steering], float], aim: float) -> Null:
    """Return the null scaled to the KL divergence `aim`, as near as possible; warns (DsasWarning) if it is far."""
    low, high = 0.0, math.inf  # factors with less than `aim`, and with more
    factor, kl = 1.0, moved(null)
    best = Null(null, factor, kl)
    for _ in range(ROUNDS):
        if abs(kl / aim - 1) <= TOLERANCE:
            break
        low, high = (factor, high) if kl < aim else (low, factor)
        factor *= (aim / kl) ** 0.5 if 0 < kl < math.inf else 4.0 if kl == 0 else 0.25  # KL grows with the square
        if not low < factor < high:
            factor = math.sqrt(low * high) if low else high / 2
        scaled = _scaled(null, factor)
        kl = moved(scaled)
        if abs(kl - aim) < abs(best.kl - aim):
            best = Null(scaled, factor, kl)
    if not abs(best.kl / aim - 1) <= FAR:
        warnings.warn(
            f"the null {name!r} has a KL divergence of {best.kl:.3g} nats, and the Steering {aim:.3g}: they are not "
            "matched; take smaller strengths",
            DsasWarning,
            stacklevel=3,
        )
    return best


def _random(steering: Steering, seed: int) -> Steering:
    draw = torch.Generator().manual_seed(seed)
    rules = []
    for rule in steering.rules:
        assert isinstance(rule.transform, Translation)
        vector = rule.transform.vector
        drawn = torch.randn(vector.shape, generator=draw).to(vector)
        rules.append(rule._replace(transform=Addition(drawn * (vector.norm() / drawn.norm()))))
    return _named(Steering(rules, steering.model), steering, RANDOM)


def _scaled(steering: Steering, factor: float) -> Steering:
    return _named(factor * steering, steering, "")


def _named(null: Steering, of: Steering, what: str) -> Steering:
    return Steering(null.rules, of.model, {**of.settings, "null": what} if what else of.settings)
