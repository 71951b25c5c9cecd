"""Plan: the options of training, apart from model and texts."""

from typing import Literal, NamedTuple

from dsas.errors import OptionError


class Optimiser(NamedTuple):
    """The optimizer, "adam" or "sgd" (without momentum), and its initial learning rates, > 0.

    rate: learning rate of slopes and offsets. regulator_rate: learning rate of the regulators. Both are in units of
    each neuron's activations. floor: the last rate over the first, in (0, 1]. The paper's recipe for LinEAS is
    Optimiser("sgd", 0.1) with 1000 steps, in the activations' own units.
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
    """The part of source and control that is held out and decides which step is best.

    share: the share of each set that is held out, in [0, 0.5]; 0 keeps the last step instead of the best. every: steps
    between two evaluations. patience: evaluations without improvement after which training stops. seed: seed of the
    split.
    """

    share: float = 0.2
    every: int = 5
    patience: int = 10
    seed: int = 0

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        if not 0 <= self.share <= 0.5 or self.every < 1 or self.patience < 1:
            raise OptionError(f"held_out needs 0 <= share <= 0.5, every >= 1 and patience >= 1, got {self}")


class Running(NamedTuple):
    """How training runs; what is learned does not depend on it.

    checkpointing: whether to recompute activations in the backward pass instead of keeping them; not for pipelines.
    distributed: whether, under torchrun or with torch.distributed initialised, all ranks train one Steering together,
    each on its share of the micro-batches; all return it, and the first writes files. With False each process trains
    its own. tensorboard: whether to write events into the checkpoint folder, too. progress: whether to show a progress
    bar.
    """

    checkpointing: bool = False
    distributed: bool = True
    tensorboard: bool = False
    progress: bool = True


class Plan(NamedTuple):
    """The number of steps and how the leaves move; sparsity: weight >= 0 of the penalty."""

    steps: int
    optimiser: Optimiser = Optimiser()
    held_out: HeldOut = HeldOut()
    sparsity: float = 0.0

    def check(self) -> None:
        """Raise OptionError for a value out of range."""
        if self.steps < 1:
            raise OptionError(f"expected steps >= 1, got {self.steps}")
        self.optimiser.check()
        self.held_out.check()
