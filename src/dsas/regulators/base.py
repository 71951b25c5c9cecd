"""The contract of a regulator: WHEN to steer, one value >= 0 per token, or per token and neuron."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor

from dsas.methods.base import Fitted, Samples
from dsas.methods.linear_boundary import CrossValidated
from dsas.methods.tuned_boundary import TokenScores
from dsas.model.forward_pass import ForwardPass


class Tuned(NamedTuple):
    """A regulator tuned on tokens, and its values on them: each text is scored by a boundary fitted without it."""

    regulator: "Regulator"
    values: TokenScores


class Untuned(NamedTuple):
    """What a regulator needs from single tokens before it is final.

    held_out: per text, source first, then control, the boundary fitted without it. tune: makes the final regulator from
    the scores that these boundaries give the tokens of the texts they were fitted without.
    """

    held_out: CrossValidated
    tune: Callable[[TokenScores], Tuned]


class FittedRegulator(NamedTuple):
    """A regulator and how well its site tells source from control on texts it was not fitted on.

    accuracy: share in [0, 1], balanced over the two sets, from cross-validation; None when nothing was learned.
    """

    regulator: "Regulator"
    accuracy: float | None


class TunableRegulator(FittedRegulator):
    """A fitted regulator that works as it is, and better once `dsas.fit` has read single tokens; see `Untuned`."""

    untuned: Untuned

    def __new__(cls, regulator: "Regulator", accuracy: float | None, untuned: Untuned) -> "TunableRegulator":
        """Keep `untuned` beside the two values that every fit returns."""
        self = super().__new__(cls, regulator, accuracy)
        self.untuned = untuned
        return self


class Regulator(Fitted, ABC):
    """A map h: R^dim -> [0, inf), applied to every token.

    Contract, checked by `dsas.testing.check_regulator`: `fit` is a classmethod that returns a `FittedRegulator` from
    pooled source, control and target activations (sample, dim), float32, and may take options by keyword; calling it
    gives float32 values >= 0 of shape (batch, token, 1), or (batch, token, dim) for one value per neuron; a row's
    values depend on that row alone. `reads_forward_pass` says whether `forward_pass` is read: if not, it may be one
    without padding. `reads_additions` says that what the site adds must be known at later sites
    (`forward_pass.without_additions`), `reads_token_ids` that token ids are read. State between passes is stored with
    `forward_pass.carry` and returned by `forward_pass.carried`.
    """

    reads_forward_pass: bool = False
    reads_additions: bool = False
    reads_token_ids: bool = False

    @classmethod
    @abstractmethod
    def fit(cls, source: Samples, control: Samples, target: Samples) -> FittedRegulator:
        """Return the regulator, high on source and low on control, with its held-out accuracy.

        target: for regulators that depend on how far a token is from where the transform takes it.
        """

    @abstractmethod
    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return h(t) >= 0 for every token, float32; gain is 1 or dim."""


def wrapped(found: FittedRegulator, around: Callable[[Regulator], Regulator]) -> FittedRegulator:
    """Return a fitted regulator inside another that has nothing to fit, tuned as by itself."""
    if not isinstance(found, TunableRegulator):
        return FittedRegulator(around(found.regulator), found.accuracy)
    untuned = found.untuned

    def tune(scores: TokenScores) -> Tuned:
        tuned = untuned.tune(scores)
        return tuned._replace(regulator=around(tuned.regulator))

    return TunableRegulator(around(found.regulator), found.accuracy, Untuned(untuned.held_out, tune))
