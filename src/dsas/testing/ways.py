"""Ways: how a Steering, or a composition of several, can act on a model, so that each law is checked for each way.

apply     inside a `with` block
install   from `install` until `remove`
fuse      as a part of the model, until `undo`; one strength, and nothing is recorded
"""

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from dsas.errors import OptionError, closest
from dsas.model.foreign import Arguments, Foreign, Model
from dsas.runtime.applied import Applied
from dsas.runtime.fuse import Fusion
from dsas.runtime.rule import Rule
from dsas.steering.composition import AppliedTogether, Composition
from dsas.steering.steering import Steering

Kind = Literal["apply", "install", "fuse"]
WAYS: tuple[str, ...] = get_args(Kind)
Acting = Applied | AppliedTogether | Fusion


@final
class Way:
    """One way in which a Steering or a composition acts."""

    def __init__(self, steering: Steering | Composition, kind: Kind = "apply") -> None:
        """Keep the Steering and the way. Raises OptionError for an unknown kind, and for fusing a composition."""
        if kind not in WAYS:
            raise OptionError(f"unknown way {kind!r}; closest: {closest(kind, WAYS)}")
        self.steering, self.is_fused = steering, kind == "fuse"
        self._kind: Kind = kind
        self.members: Arguments = steering.steerings if isinstance(steering, Composition) else (steering,)
        if self.is_fused and isinstance(steering, Composition):
            raise OptionError("a composition cannot be fused: fuse its Steerings one after another")

    @property
    def rules(self) -> list[Rule]:
        """The rules that steer, of all members."""
        return [rule for member in self.members for rule in member.rules if rule.weight > 0]

    @contextmanager
    def on(self, model: Model, strength: Any = None, **options: Any) -> Iterator[Acting]:
        """Let it act inside the block. options: those of `Steering.apply`; fusing takes none and steers all rows."""
        if isinstance(self.steering, Steering) and self.is_fused:
            with self.steering.fuse(model, strength, branch="both") as fused:
                yield fused
        elif self._kind == "install":
            applied = self.steering.apply(model, strength, **options).install()
            try:
                yield applied
            finally:
                applied.remove()
        else:
            with self.steering.apply(model, strength, **options) as applied:
                yield applied

    def by_row(self, strengths: Tensor) -> Foreign:
        """Return strengths per row, as `on` takes them: each member gets them all."""
        return [strengths] * len(self.members) if isinstance(self.steering, Composition) else strengths

    def with_steering(self, steering: Steering | Composition) -> "Way":
        """Return the same way for another Steering."""
        return Way(steering, self._kind)

    def stored(self) -> "Way":
        """Return the same way for what is saved and loaded."""
        members = []
        for member in self.members:
            with TemporaryDirectory() as folder:
                member.save_pretrained(folder)
                members.append(Steering.from_pretrained(folder))
        return self.with_steering(Composition(members) if isinstance(self.steering, Composition) else members[0])


def applied_of(acting: Acting) -> list[Applied]:
    """Return one Applied per member, or none if it is fused."""
    if isinstance(acting, Fusion):
        return []
    return list(acting) if isinstance(acting, AppliedTogether) else [acting]


def strengths_of(acting: Acting) -> list[Tensor]:
    """Return the applied strengths (site, token) of every row, of all members; none where nothing was recorded."""
    traces = [one.trace().strengths for one in applied_of(acting) if one.has_trace]
    return list(torch.cat(traces).transpose(0, 1)) if traces else []
