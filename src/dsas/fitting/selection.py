"""Selection: which sites are steered, by how well each tells source from control on texts it was not fitted on.

| selection | a site's weight |
|---|---|
| `Threshold(0.75)` | 1 when its held-out accuracy reaches the threshold, else 0 (DSAS, arXiv 2512.03661) |
| `Smooth()` | max(0, 2 * accuracy - 1) |
| `Top(48)` | 1 for the most accurate sites, else 0 |
| `All()` | 1 |

Except under `Top`, a site whose regulator learns nothing has no accuracy and is always steered.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar, final

from dsas.errors import OptionError, closest

Accuracies = Sequence[float | None]


@dataclass(frozen=True)
class Selection(ABC):
    """Gives every site its weight in [0, 1]; final leaves are frozen dataclasses, so that their `repr` rebuilds them.

    needs_accuracy: whether a site's accuracy is measured even if its regulator learns nothing.
    """

    name: ClassVar[str]
    needs_accuracy: ClassVar[bool] = False

    @abstractmethod
    def weights(self, accuracies: Accuracies) -> list[float]:
        """Return the weight of each site, from the held-out accuracies of all of them."""

    def describe(self) -> str:
        """Return the name and the numbers, as a Steering's settings hold them."""
        return " ".join(map(str, [self.name, *astuple(self)]))


@final
@dataclass(frozen=True)
class Threshold(Selection):
    """Steers the sites whose held-out accuracy is at least `least`, in [0, 1]."""

    least: float = 0.75
    name: ClassVar[str] = "threshold"

    def __post_init__(self) -> None:
        if not 0 <= self.least <= 1:
            raise OptionError(f"a threshold is an accuracy from 0 to 1, got {self.least}")

    def weights(self, accuracies: Accuracies) -> list[float]:
        """Return 1 where the accuracy reaches the threshold or there is none, else 0."""
        return [float(accuracy is None or accuracy >= self.least) for accuracy in accuracies]


@final
@dataclass(frozen=True)
class Smooth(Selection):
    """Weights every site by max(0, 2 * accuracy - 1)."""

    name: ClassVar[str] = "smooth"

    def weights(self, accuracies: Accuracies) -> list[float]:
        """Return the weights; 1 where there is no accuracy."""
        return [1.0 if accuracy is None else max(0.0, 2 * accuracy - 1) for accuracy in accuracies]


@final
@dataclass(frozen=True)
class Top(Selection):
    """Steers the `count` >= 1 most accurate sites; among equals, the earlier ones."""

    count: int = 48
    name: ClassVar[str] = "top"
    needs_accuracy: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.count < 1:
            raise OptionError(f"Top needs a count of at least 1, got {self.count}")

    def weights(self, accuracies: Accuracies) -> list[float]:
        """Return 1 for the best sites, else 0."""
        best = sorted(range(len(accuracies)), key=lambda number: -(accuracies[number] or 0.0))[: self.count]
        return [float(number in best) for number in range(len(accuracies))]


@final
@dataclass(frozen=True)
class All(Selection):
    """Steers every site."""

    name: ClassVar[str] = "all"

    def weights(self, accuracies: Accuracies) -> list[float]:
        """Return 1 for every site."""
        return [1.0] * len(accuracies)


SELECTIONS: dict[str, type[Selection]] = {kind.name: kind for kind in (Threshold, Smooth, Top, All)}


def selection_of(selection: Selection | str) -> Selection:
    """Return the requested selection; a name takes its defaults. Raises OptionError for anything else."""
    if isinstance(selection, Selection):
        return selection
    if selection not in SELECTIONS:
        raise OptionError(f"unknown selection {selection!r}; closest: {closest(selection, SELECTIONS)}")
    return SELECTIONS[selection]()
