"""At work: which Steerings are at work on a model, also where nobody holds what `apply` returned."""

from dsas.model.foreign import Model
from dsas.model.hooks import steering_at
from dsas.model.subject import subject_of
from dsas.runtime.applied import Applied


def installed(model: Model) -> list[Applied]:
    """Return the Applied objects that steer `model`, a torch module or a diffusers pipeline, each once.

    In the order of the first module that each steers. What was fused into the weights is not among them.
    """
    found: dict[int, Applied] = {}
    for those in steering_at(subject_of(model).module).values():
        found |= {id(one): one for one in those if isinstance(one, Applied)}
    return list(found.values())


def remove_all(model: Model) -> int:
    """Take every Steering off `model` that was applied to it, by whichever thread. Returns how many there were.

    A fused Steering stays: `Fusion.undo` has what the weights were before.
    """
    those = installed(model)
    for one in those:
        one.remove()
    return len(those)
