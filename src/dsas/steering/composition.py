"""Composition: several Steerings on one model at once, each with its own strength, in a stated order.

    both = detox | formal
    with both.apply(model, (0.1, 0.5)) as applied:
        model.generate(...)
    applied[0].trace()                     # of the first

The left one acts first: at a site of both, the second sees activations that the first has steered.

`a + b` and `2 * a` make one Steering of additions, and only where that is exact: the transforms add vectors, and at a
site of both the regulators are the same.
"""

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import nn

from dsas.errors import DsasWarning, OptionError
from dsas.methods.base import same
from dsas.model.foreign import Foreign, Model
from dsas.model.pipeline_modules import Branch
from dsas.model.sites import labels
from dsas.model.strength import PromptTokens, Strength
from dsas.parallel.interruption import Leaving, surely, to_the_end
from dsas.runtime.applied import Applied, Record
from dsas.runtime.rule import Rule
from dsas.runtime.scope import Scope
from dsas.transforms.affine import Translation
from dsas.transforms.base import Transform

OPPOSED_BELOW = -0.5


@runtime_checkable
class Steers(Protocol):
    """Anything that can be composed: a Steering."""

    rules: tuple[Rule, ...]

    def apply(
        self,
        model: Model,
        strength: Strength | None,
        *,
        record: Record = True,
        skip_sinks: bool = False,
        prompt_tokens: PromptTokens = None,
        branch: Branch = "conditional",
        scope: Scope = "process",
    ) -> Applied:
        """Return the context manager inside which it acts."""
        ...


class Conflict(NamedTuple):
    """A site that two Steerings share: their places in the order, and the cosine of the vectors they add.

    cosine: in [-1, 1]; None when one of them does not add a fixed vector.
    """

    site: str
    first: int
    second: int
    cosine: float | None


class AppliedTogether(tuple[Applied, ...], Leaving):
    """The Applied of each Steering, in their order: a context manager, or installed until `remove`."""

    def install(self) -> "AppliedTogether":
        """Put all hooks on, the first Steering's first, and return self; on an error none stay on."""
        try:
            for one in self:
                one.install()
        except BaseException:
            to_the_end(self.remove)
            raise
        return self

    def remove(self) -> None:
        """Take all hooks off, even if removing some raises. Removing twice is harmless."""
        with ExitStack() as stack:
            for one in self:
                stack.callback(one.remove)

    def __enter__(self) -> "AppliedTogether":
        self.entered()
        return self.install()

    @surely
    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with ExitStack() as stack:
            for one in self:
                stack.callback(one.__exit__, kind, error, trace)


class Composition:
    """Steerings in the order in which they are applied; made by `a | b`."""

    def __init__(self, steerings: Sequence[Steers]) -> None:
        if not steerings:
            raise OptionError("a composition needs at least one Steering")
        self.steerings = tuple(steerings)

    def __or__(self, other: "Steers | Composition") -> "Composition":
        return compose(self, other)

    def apply(
        self,
        model: Model,
        strength: Strength | Sequence[Strength | None] | None = None,
        *,
        record: Record = True,
        skip_sinks: bool = False,
        prompt_tokens: PromptTokens = None,
        branch: Branch = "conditional",
        scope: Scope = "process",
    ) -> AppliedTogether:
        """Return a context manager inside which all act on `model`; its items are the Applied of each, in order.

        `apply(...).install()` steers until `.remove()` is called on its result. strength: one number for all, or one
        entry per Steering, each a number or one per row; None is the default of each, as in `Steering.apply`. These
        were calibrated separately, so together they may do more damage than each was allowed. Other arguments and
        errors as there. Warns where two pull in opposite directions.
        """
        count = len(self.steerings)
        each = _each(strength, count)
        if len(each) != count:
            raise OptionError(f"expected one strength, or one for each of the {count} Steerings, got {len(each)}")
        opposed = [c for c in self.conflicts() if c.cosine is not None and c.cosine < OPPOSED_BELOW]
        if opposed:
            first = opposed[0]
            warnings.warn(
                f"Steerings {first.first} and {first.second} pull in opposite directions at {len(opposed)} sites, for "
                f"example at {first.site} (cosine {first.cosine:.2f}); see conflicts()",
                DsasWarning,
                stacklevel=2,
            )
        return AppliedTogether(
            steering.apply(
                model,
                one,
                record=record,
                skip_sinks=skip_sinks,
                prompt_tokens=prompt_tokens,
                branch=branch,
                scope=scope,
            )
            for steering, one in zip(self.steerings, each, strict=True)
        )

    def conflicts(self) -> list[Conflict]:
        """Return every site at which two of the Steerings act, in the order of the first one's sites."""
        found = []
        steered = [{rule.site: rule for rule in steering.rules if rule.weight > 0} for steering in self.steerings]
        for first, rules in enumerate(steered):
            names = dict(zip(rules, labels(list(rules)), strict=True))
            for second in range(first + 1, len(steered)):
                for site in [site for site in rules if site in steered[second]]:
                    vectors = [of[site].transform for of in (rules, steered[second])]
                    found.append(Conflict(names[site], first, second, _cosine(*vectors)))
        return found

    def __repr__(self) -> str:
        return "\n| ".join(map(repr, self.steerings))


def _each(strength: Any, count: int) -> list[Foreign]:
    """Broadcast one strength to all Steerings, or return the list; `Steering.apply` checks the values."""
    try:
        return list(strength)
    except TypeError:
        return [strength] * count


def compose(first: Steers | Composition, second: Steers | Composition) -> Composition:
    """Return two Steerings or compositions as one, those of `first` acting first."""
    members = [part.steerings if isinstance(part, Composition) else (part,) for part in (first, second)]
    return Composition([steering for part in members for steering in part])


def _cosine(first: nn.Module, second: nn.Module) -> float | None:
    if not (isinstance(first, Translation) and isinstance(second, Translation)):
        return None
    return float(torch.nn.functional.cosine_similarity(first.vector.detach(), second.vector.detach(), dim=0))


def scaled(rules: Sequence[Rule], factor: float) -> list[Rule]:
    """Return the rules with their vectors multiplied. Raises OptionError for a transform that adds no vector."""
    return [rule._replace(transform=factor * _vector(rule)) for rule in rules]


def summed(first: Sequence[Rule], second: Sequence[Rule]) -> list[Rule]:
    """Return rules that add the vectors of both. Raises OptionError where that would not be exact."""
    total = {rule.site: rule for rule in first}
    for rule in second:
        other = total.get(rule.site)
        if other is None:
            total[rule.site] = rule
            continue
        if other.weight != rule.weight or not same(other.regulator, rule.regulator):
            raise OptionError(
                f"the sum is exact only where weights and regulators are the same, and at {rule.site} they differ; "
                "apply both one after another with a | b"
            )
        total[rule.site] = other._replace(transform=_vector(other) + _vector(rule))
    return list(total.values())


def _vector(rule: Rule) -> Translation:
    transform: Transform = rule.transform
    if not isinstance(transform, Translation):
        raise OptionError(
            f"only additions of vectors have exact sums and multiples, got {type(transform).__name__} at {rule.site}; "
            "set a strength instead, or apply several one after another with a | b"
        )
    return transform
