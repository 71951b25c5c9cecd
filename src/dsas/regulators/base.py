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
    """A regulator as tokens have tuned it, and its values on them: each text's scored without that text."""

    regulator: "Regulator"
    values: TokenScores


class Untuned(NamedTuple):
    """What a regulator wants to know of single tokens before it is final.

    held_out: boundaries drawn without each text, source first, then control. tune: makes the final regulator of the
    scores that those boundaries give to the tokens of the texts they were drawn without.
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
    """A fitted regulator that is good as it is, and better once `dsas.fit` has read single tokens; see `Untuned`."""

    untuned: Untuned

    def __new__(cls, regulator: "Regulator", accuracy: float | None, untuned: Untuned) -> "TunableRegulator":
        """Keep what is still open beside the two that every fit returns."""
        self = super().__new__(cls, regulator, accuracy)
        self.untuned = untuned
        return self


class Regulator(Fitted, ABC):
    """A map h: R^dim -> [0, inf), applied to every token.

    Contract, checked by `dsas.testing.check_regulator`: `fit` is a classmethod that returns a `FittedRegulator` from
    pooled source, control and target activations (sample, dim), float32, and may take options by keyword; calling it
    gives float32 values >= 0 of shape (batch, token, 1), or (batch, token, dim) for one value per neuron; a row's
    values depend on that row alone. `reads_forward_pass` says whether `forward_pass` is looked at: if not, it may be
    one that knows nothing about padding. `reads_additions` says that what the site adds is to be known to later ones
    (`forward_pass.without_additions`), `reads_token_ids` that token ids are read. What must be remembered between
    passes is kept by `forward_pass.carry` and comes back from `forward_pass.carried`.
    """

    reads_forward_pass: bool = False
    reads_additions: bool = False
    reads_token_ids: bool = False

    @classmethod
    @abstractmethod
    def fit(cls, source: Samples, control: Samples, target: Samples) -> FittedRegulator:
        """Return the regulator that answers high on source and low on control, with its held-out accuracy.

        target: for the regulators that ask how far a token is from where the transform takes it.
        """

    @abstractmethod
    def forward(
        self, t: Float[Tensor, "batch token dim"], forward_pass: ForwardPass
    ) -> Float[Tensor, "batch token gain"]:
        """Return h(t) >= 0 for every token, float32; gain is 1 or dim."""
