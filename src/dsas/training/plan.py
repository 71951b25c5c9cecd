"""Plan: what training is asked to do, apart from model and texts."""

from typing import Literal, NamedTuple

from dsas.errors import OptionError


class Optimiser(NamedTuple):
    """How parameters move: "adam" or "sgd" (without momentum), and the rates at the start, > 0.

    rate: of slopes and offsets. regulator_rate: of what E2E-DSAS learns of its regulators. Both are in units of each
    neuron's activations. floor: the last rate over the first, in (0, 1]. The paper's recipe for LinEAS is
    Optimiser("sgd", 0.1) with 1000 steps, in units that activations happen to have.
    """

    name: Literal["adam", "sgd"] = "adam"
    rate: float = 0.003
    regulator_rate: float = 0.003
    floor: float = 1e-3

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        rates = self.rate > 0 and self.regulator_rate > 0 and 0 < self.floor <= 1
        if self.name not in ("adam", "sgd") or not rates:
            raise OptionError(f"optimiser must be 'adam' or 'sgd' with rates > 0 and 0 < floor <= 1, got {self}")


class HeldOut(NamedTuple):
    """What decides which step is the best: a part of source and control that is not learned from.

    share: of each of both sets, in [0, 0.5]; 0 keeps the last step instead of the best. every: steps between two looks.
    patience: looks without a better one after which training stops.
    """

    share: float = 0.2
    every: int = 5
    patience: int = 10

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        if not 0 <= self.share <= 0.5 or self.every < 1 or self.patience < 1:
            raise OptionError(f"held_out needs 0 <= share <= 0.5, every >= 1 and patience >= 1, got {self}")


class Objective(NamedTuple):
    """What is made small; all >= 0. gamma: weight of the control term, not computed at 0. sparsity: of the penalty.

    beta, > 0, and per_step, >= 1, are those of preference: how soon a pair is preferred enough, in one over nats; and
    how many pairs, and as many control texts, a step takes.
    """

    gamma: float = 0.0
    sparsity: float = 0.0
    beta: float = 0.1
    per_step: int = 16

    def as_dict(self, *, paired: bool) -> dict[str, float]:
        """Return what counts: beta and per_step with pairs only."""
        return self._asdict() if paired else {"gamma": self.gamma, "sparsity": self.sparsity}

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        if not (self.gamma >= 0 and self.sparsity >= 0 and self.beta > 0 and self.per_step >= 1):
            raise OptionError(f"expected gamma >= 0, sparsity >= 0, beta > 0 and per_step >= 1, got {self}")


class Plan(NamedTuple):
    """How long and how to train."""

    objective: Objective
    steps: int
    optimiser: Optimiser = Optimiser()
    held_out: HeldOut = HeldOut()
