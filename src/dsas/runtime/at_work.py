"""At work: which Steerings are applied to a model, even if nothing holds the result of `apply` any more."""

from collections.abc import Sequence

from torch import Tensor

from dsas.model.foreign import Model
from dsas.model.hooks import steering_at
from dsas.model.subject import subject_of
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.runtime.applied import Applied


def installed(model: Model) -> list[Applied]:
    """Return the Applied objects that steer `model`, a torch module or a diffusers pipeline, each once.

    They are in the order of the first module that each steers. Fused Steerings are not among them.
    """
    found: dict[int, Applied] = {}
    for those in steering_at(subject_of(model).module).values():
        found |= {id(one): one for one in those if isinstance(one, Applied)}
    return list(found.values())


def remove_all(model: Model) -> int:
    """Remove every Steering that any thread has applied to `model`. Returns how many there were.

    A fused Steering stays: `Fusion.undo` holds the original weights.
    """
    those = installed(model)
    for one in those:
        one.remove()
    return len(those)


def unsteered(model: Model) -> "Unsteered":
    """Return a context manager inside which nothing that steers `model` now acts, in any thread.

    Afterwards each Steering acts at the strength it had, unless it was taken off inside. What is applied inside acts,
    and what was fused into the weights stays. Tokens that fill a cache inside are not steered later either.
    """
    return Unsteered(installed(model))


class Unsteered(Leaving):
    """What `unsteered` returns: Applied objects at strength 0 inside a block."""

    def __init__(self, those: Sequence[Applied]) -> None:
        self._those = those
        self._before = list[tuple[Applied, Tensor]]()

    def __enter__(self) -> None:
        self.entered()
        self._before = [(one, one.strength) for one in self._those]
        try:
            for one in self._those:
                one.strength = 0.0
        except BaseException:
            to_the_end(self._as_before)
            raise

    @surely
    def __exit__(self, *_exception: object) -> None:
        self._as_before()

    def _as_before(self) -> None:
        for one, strength in self._before:
            one.strength = strength
